//! Changes of a VM while it runs.

use super::*;

#[test]
fn a_serial_port_gets_another_end_and_loses_nothing() {
    on_each_engine(|folder, soft| {
        let mut source = boot(folder, soft, "mode=counter every=1000");
        wait_lines(&source, 20);
        let path = |name: &str| folder.join(name);
        let log = |name: &str| {
            let mut options = File::options();
            let file = options.create(true).append(true).open(path(name));
            file.expect("log")
        };
        for round in 0..20 {
            let file = log(&format!("log{round}"));
            source.set_serial(0, &file, None).expect("another log");
        }
        let socket = UnixListener::bind(path("line.sock")).expect("bind");
        source
            .set_serial(0, &log("beside"), Some(socket))
            .expect("a socket");
        let mut line = UnixStream::connect(path("line.sock")).expect("connect");
        line.set_read_timeout(Some(Duration::from_secs(60)))
            .expect("limit");
        line.write_all(b"g").expect("type");
        let mut seen = String::new();
        while !seen.contains("gap=") {
            let mut bytes = [0; 4096];
            let count = line.read(&mut bytes).expect("read");
            assert_ne!(count, 0, "the line ended after {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }

        // More than the guest's port and this process take at once, while nobody reads.
        source.order(Command::Pause).expect("pause");
        line.write_all(&[b'g'; 500]).expect("type");
        fails(
            source.set_serial(1, &log("other"), None),
            "there is no serial port 1",
        );
        source.set_serial(0, &log("last"), None).expect("a log");
        line.read_to_end(&mut vec![])
            .expect("the old end is closed");
        source.order(Command::Resume).expect("resume");

        let logs = || {
            let mut text = source.serial();
            let names = (0..20).map(|round| format!("log{round}"));
            for name in names.chain(["beside".into(), "last".into()]) {
                text += &std::fs::read_to_string(path(&name)).unwrap_or_default();
            }
            text
        };
        let gaps = |text: &str| text.matches("gap=").count();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while gaps(&logs()) < 501 {
            assert!(std::time::Instant::now() < deadline, "{}", gaps(&logs()));
            std::thread::sleep(Duration::from_millis(5));
        }
        let text = logs();
        let values = text.lines().filter_map(|line| line.strip_prefix("c="));
        let values = values.filter(|hex| hex.len() == 16);
        let values: Vec<_> = values
            .map(|hex| u64::from_str_radix(hex, 16).expect("hexadecimal"))
            .collect();
        assert!(
            values.windows(2).all(|pair| pair[0] + 1000 == pair[1]),
            "a line is missing"
        );
    });
}

#[test]
fn a_word_to_an_agent_that_is_not_there_is_refused() {
    on_each_engine(|folder, soft| {
        let mut shell = VmProcess::shell(folder, "shell").expect("shell");
        let ping = Command::TellAgent(r#"{"type":"ping"}"#.into());
        fails(shell.order(ping.clone()), "runs no VM yet");
        let mut vm = boot(folder, soft, "idle=1");
        fails(vm.order(ping), "no agent that is connected");
        fails(
            vm.order(Command::TellAgent("{".into())),
            "no message to an agent",
        );
        match vm.call(Command::Status).expect("status") {
            Outcome::Status(status) => assert_eq!(status.state, VmState::Running),
            other => panic!("{other:?}"),
        }
    });
}
