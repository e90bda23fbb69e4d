//! The local APIC's timer: one-shot, periodic, TSC deadline (SDM 3A 11.5.4).

/// Shortest period, nanoseconds: a guest that asks for less gets this.
const PERIOD_NS_MIN: u64 = 20_000;

/// Mode of the timer (bits 18 and 17 of its LVT entry).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl Mode {
    pub(crate) fn of_entry(entry: u32) -> Self {
        match entry >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

/// The timer; it counts nanoseconds, divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timer {
    /// Initial count.
    pub(crate) initial: u32,
    /// Divide configuration: bits 3, 1, 0.
    pub(crate) divide: u32,
    /// TSC deadline; 0 when unarmed.
    pub(crate) tsc_deadline: u64,
    /// When it fires next, of the host's monotonic clock.
    pub(crate) fires_ns: Option<u64>,
}

impl Timer {
    /// Nanoseconds per count.
    fn divisor(self) -> u64 {
        let bits = self.divide & 3 | self.divide >> 1 & 4;
        if bits == 7 { 1 } else { 2 << bits }
    }

    fn period_ns(self) -> u64 {
        (u64::from(self.initial) * self.divisor()).max(PERIOD_NS_MIN)
    }

    /// Disarms it.
    pub(crate) fn stop(&mut self) {
        self.initial = 0;
        self.tsc_deadline = 0;
        self.fires_ns = None;
    }

    /// Takes a write to the initial-count register.
    pub(crate) fn start(&mut self, count: u32, mode: Mode, now_ns: u64) {
        if !matches!(mode, Mode::OneShot | Mode::Periodic) {
            return;
        }
        self.initial = count;
        self.fires_ns = (count != 0).then(|| {
            let after = match mode {
                Mode::Periodic => self.period_ns(),
                _ => u64::from(count) * self.divisor(),
            };
            now_ns.saturating_add(after)
        });
    }

    /// Takes a write to the divide register; a count under way keeps what is left of it.
    pub(crate) fn set_divide(&mut self, value: u32, now_ns: u64) {
        let left = self.current(now_ns);
        self.divide = value & 0b1011;
        if self.initial != 0 && self.fires_ns.is_some() {
            self.fires_ns = Some(now_ns.saturating_add(u64::from(left) * self.divisor()));
        }
    }

    /// Takes a write to the TSC-deadline register, with the deadline in host time.
    pub(crate) fn set_deadline(&mut self, tsc: u64, fires_ns: u64) {
        self.tsc_deadline = tsc;
        self.fires_ns = (tsc != 0).then_some(fires_ns);
    }

    /// The current-count register.
    pub(crate) fn current(self, now_ns: u64) -> u32 {
        if self.initial == 0 {
            return 0;
        }
        let left = self.fires_ns.unwrap_or(0).saturating_sub(now_ns);
        u32::try_from(left / self.divisor()).map_or(self.initial, |count| count.min(self.initial))
    }

    /// Goes on from a saved count.
    pub(crate) fn resume(&mut self, current: u32, mode: Mode, now_ns: u64) {
        self.fires_ns = None;
        let counts = matches!(mode, Mode::OneShot | Mode::Periodic) && self.initial != 0;
        // A one-shot count that has reached 0 is over.
        if counts && (current != 0 || mode == Mode::Periodic) {
            let left = u64::from(current.min(self.initial)) * self.divisor();
            self.fires_ns = Some(now_ns.saturating_add(left));
        }
    }

    /// Returns whether it fired since the last call, and arms it again where it is periodic.
    pub(crate) fn poll(&mut self, mode: Mode, now_ns: u64) -> bool {
        let Some(at) = self.fires_ns.filter(|at| *at <= now_ns) else {
            return false;
        };
        self.fires_ns = None;
        match mode {
            // Ticks that nobody could take are not made up for.
            Mode::Periodic => {
                let period = self.period_ns();
                let late = (now_ns - at) % period;
                self.fires_ns = Some((now_ns - late).saturating_add(period));
            }
            Mode::TscDeadline => self.tsc_deadline = 0,
            Mode::OneShot | Mode::Reserved => {}
        }
        true
    }
}
