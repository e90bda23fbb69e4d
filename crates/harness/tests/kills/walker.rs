//! Looks at a home from outside: files, processes and the database, each against the others. It
//! shares no code with the daemon.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

/// What may be in the directory of a datastore.
const STORE_CONTENT: [&str; 7] = [
    ".mitose-datastore",
    "layers",
    "vms",
    "pool",
    "memory",
    "boot",
    ".new",
];
/// Environment variable by which VM processes tell their home.
const HOME_MARK: &str = "MITOSE_VM_OF";

/// What the database says.
pub struct Database {
    pub vms: Vec<Value>,
    /// Other objects: kind, id and document.
    pub others: Vec<(String, String, Value)>,
    /// Object that each other one lies in.
    parents: HashMap<String, String>,
    layers: HashMap<String, Value>,
    running_tasks: i64,
    problems: Vec<String>,
}

/// What is wrong in a home whose daemon has come to rest; `shells` is the number of processes that
/// may wait for work, `started` is when the daemon was.
pub fn problems(home: &Path, shells: usize, started: SystemTime) -> Vec<String> {
    let mut database = match read(home) {
        Ok(database) => database,
        Err(error) => return vec![format!("the database cannot be read: {error}")],
    };
    let mut found = std::mem::take(&mut database.problems);
    found.extend(wrong_states(&database));
    found.extend(wrong_layers(&database));
    found.extend(wrong_files(home, &database));
    found.extend(wrong_pools(home, &database, started));
    found.extend(wrong_memory(&database));
    found.extend(wrong_processes(home, &database, shells));
    found
}

pub fn read(home: &Path) -> rusqlite::Result<Database> {
    // The daemon has the file for itself: a copy with its log is what it would recover from.
    let folder = tempfile::tempdir().expect("folder");
    for name in ["inventory.db", "inventory.db-wal"] {
        let _ = fs::copy(home.join(name), folder.path().join(name));
    }
    let connection = Connection::open_with_flags(
        folder.path().join("inventory.db"),
        OpenFlags::SQLITE_OPEN_READ_WRITE,
    )?;
    let mut problems = Vec::new();
    let whole: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if whole != "ok" {
        problems.push(format!("database: {whole}"));
    }
    let mut orphans = connection.prepare("PRAGMA foreign_key_check")?;
    if orphans.exists([])? {
        problems.push("database: a row has a parent that is not there".to_owned());
    }
    drop(orphans);
    let mut database = Database {
        vms: Vec::new(),
        others: Vec::new(),
        parents: HashMap::new(),
        layers: HashMap::new(),
        running_tasks: 0,
        problems,
    };
    let mut objects = connection.prepare("SELECT kind, id, doc, parent FROM objects")?;
    let mut rows = objects.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, id): (String, String) = (row.get(0)?, row.get(1)?);
        let doc = serde_json::from_str(&row.get::<_, String>(2)?).unwrap_or_default();
        if let Some(parent) = row.get::<_, Option<String>>(3)? {
            database.parents.insert(id.clone(), parent);
        }
        if kind == "vm" {
            database.vms.push(doc);
        } else {
            database.others.push((kind, id, doc));
        }
    }
    let mut layers = connection.prepare("SELECT id, doc FROM layers")?;
    let mut rows = layers.query([])?;
    while let Some(row) = rows.next()? {
        let doc = serde_json::from_str(&row.get::<_, String>(1)?).unwrap_or_default();
        database.layers.insert(row.get(0)?, doc);
    }
    let running = "SELECT count(*) FROM tasks WHERE running";
    database.running_tasks = connection.query_row(running, [], |row| row.get(0))?;
    Ok(database)
}

pub fn text<'a>(doc: &'a Value, field: &str) -> &'a str {
    doc[field].as_str().unwrap_or_default()
}

fn has_process(vm: &Value) -> bool {
    let off = ["creating", "poweredOff", "outOfMemory", "suspended"];
    !off.contains(&text(vm, "state"))
}

fn wrong_states(database: &Database) -> Vec<String> {
    let mut found = Vec::new();
    for vm in &database.vms {
        let (name, state) = (text(vm, "name"), text(vm, "state"));
        if state == "creating" {
            found.push(format!("{name} is half-made"));
        }
        if !vm["suspend"]["writing"].is_null() {
            found.push(format!("{name} is on its way to disk"));
        }
        let pid = vm["pid"].as_i64();
        let alive = pid.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists());
        if has_process(vm) && !alive {
            found.push(format!("{name} is {state} without a process"));
        }
    }
    for (kind, id, doc) in &database.others {
        let half = ["sealing", "writing"].contains(&text(doc, "memory"));
        let half = half || doc["writing"] == true || doc["adding"] == true;
        if half {
            found.push(format!("{kind} {id} is half-made"));
        }
    }
    if database.running_tasks > 0 {
        found.push(format!(
            "{} tasks seem to be in work",
            database.running_tasks
        ));
    }
    found
}

/// All texts in a document.
fn texts<'a>(doc: &'a Value, found: &mut Vec<&'a str>) {
    match doc {
        Value::String(text) => found.push(text),
        Value::Array(list) => list.iter().for_each(|item| texts(item, found)),
        Value::Object(fields) => fields.values().for_each(|item| texts(item, found)),
        _ => {}
    }
}

fn wrong_layers(database: &Database) -> Vec<String> {
    let mut used: HashSet<&str> = HashSet::new();
    let mut found = Vec::new();
    for vm in &database.vms {
        let [rows, slots] = [&vm["disks"], &vm["spec"]["disks"]];
        let count = |list: &Value| list.as_array().map_or(0, Vec::len);
        if count(rows) != count(slots) {
            found.push(format!("{} has {rows} in slots {slots}", text(vm, "name")));
        }
        for disk in vm["disks"].as_array().into_iter().flatten() {
            used.extend([text(disk, "top"), text(disk, "pending")]);
            let top = text(disk, "top");
            if !top.is_empty() && !database.layers.contains_key(top) {
                found.push(format!("{} needs layer {top}", text(vm, "name")));
            }
        }
    }
    for (kind, id, doc) in &database.others {
        // The record of an archive does not hold its layers.
        if kind == "archive" {
            continue;
        }
        let mut all = Vec::new();
        texts(doc, &mut all);
        used.extend(all);
        for top in doc["tops"].as_array().into_iter().flatten() {
            let top = top.as_str().unwrap_or_default();
            if !top.is_empty() && !database.layers.contains_key(top) {
                found.push(format!("{kind} {id} needs layer {top}"));
            }
        }
    }
    used.extend(database.layers.values().map(|layer| text(layer, "parent")));
    for (id, layer) in &database.layers {
        let path = Path::new(text(layer, "path"));
        if !path.exists() {
            found.push(format!("layer {id} has no file {}", path.display()));
        }
        if !used.contains(id.as_str()) {
            found.push(format!("nobody uses layer {id}"));
        }
        let parent = text(layer, "parent");
        if !parent.is_empty() && !database.layers.contains_key(parent) {
            found.push(format!("layer {id} stands on {parent}, which is not there"));
        }
    }
    found
}

/// Directory of each datastore, with its id.
pub fn store_dirs(home: &Path, database: &Database) -> Vec<(String, PathBuf)> {
    let stores = database
        .others
        .iter()
        .filter(|(kind, ..)| kind == "datastore");
    stores
        .map(|(_, id, doc)| match text(doc, "path") {
            "" => (id.clone(), home.join("datastore1")),
            path => (id.clone(), path.into()),
        })
        .collect()
}

/// Folders in `folder` that say of themselves that they are datastores although the database has none
/// there.
pub fn strange_stores(folder: &Path, home: &Path, names: &[&str]) -> Vec<String> {
    let Ok(database) = read(home) else {
        return Vec::new();
    };
    let dirs = store_dirs(home, &database);
    let strange = |name: &&&str| {
        let dir = folder.join(name);
        !dirs.iter().any(|(_, known)| *known == dir) && !names_in(&dir).is_empty()
    };
    let strange = names.iter().filter(strange);
    strange
        .map(|name| {
            format!(
                "{name} is no datastore and has {:?}",
                names_in(&folder.join(name))
            )
        })
        .collect()
}

/// Copies that were being made by the daemon before, halves, and copies of no pool.
fn wrong_pools(home: &Path, database: &Database, started: SystemTime) -> Vec<String> {
    let mut found = Vec::new();
    for (store_id, store) in store_dirs(home, database) {
        for pool in names_in(&store.join("pool")) {
            let dir = store.join("pool").join(&pool);
            if database.parents.get(&pool) != Some(&store_id) {
                found.push(format!("{} is of no pool here", dir.display()));
                continue;
            }
            let (parts, whole): (Vec<_>, Vec<_>) = names_in(&dir)
                .into_iter()
                .partition(|name| name.ends_with(".part"));
            if parts.len() > 1 {
                found.push(format!("{} has {parts:?}", dir.display()));
            }
            for name in parts {
                let begun = fs::metadata(dir.join(&name)).and_then(|part| part.created());
                if begun.is_ok_and(|begun| begun < started) {
                    found.push(format!("{}/{name} was left", dir.display()));
                }
            }
            for name in whole {
                let mut files = names_in(&dir.join(&name));
                files.sort();
                // One that was just taken or removed is empty, or gone.
                let disks = (0..files.len().saturating_sub(1)).map(|n| format!("disk{n}.qcow2"));
                let whole = std::iter::once("content".to_owned()).chain(disks);
                if !files.is_empty() && (files.len() < 2 || !whole.eq(files.iter().cloned())) {
                    found.push(format!("{}/{name} has {files:?}", dir.display()));
                }
            }
        }
    }
    found
}

/// Files of memory that a document names and that are not there.
fn wrong_memory(database: &Database) -> Vec<String> {
    let mut named = Vec::new();
    database.vms.iter().for_each(|vm| memory_of(vm, &mut named));
    let others = database.others.iter();
    others.for_each(|(_, _, doc)| memory_of(doc, &mut named));
    named
        .into_iter()
        .filter(|path| !Path::new(path).exists())
        .map(|path| format!("memory {path} is not there"))
        .collect()
}

fn memory_of<'a>(doc: &'a Value, named: &mut Vec<&'a str>) {
    match doc {
        Value::Array(list) => list.iter().for_each(|item| memory_of(item, named)),
        Value::Object(fields) => {
            if let (Some(Value::String(ram)), Some(Value::String(state))) =
                (fields.get("ram"), fields.get("checkpoint"))
            {
                named.extend([ram.as_str(), state.as_str()]);
            }
            fields.values().for_each(|item| memory_of(item, named));
        }
        _ => {}
    }
}

/// Homes that a daemon makes ahead in each datastore.
const SPARE_HOMES: usize = 8;

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn wrong_files(home: &Path, database: &Database) -> Vec<String> {
    let mut found = Vec::new();
    let known: HashSet<PathBuf> = database
        .layers
        .values()
        .map(|layer| PathBuf::from(text(layer, "path")))
        .collect();
    let ids: HashSet<&str> = database.vms.iter().map(|vm| text(vm, "id")).collect();
    let mut named = Vec::new();
    for (kind, id, doc) in &database.others {
        named.push(id.as_str());
        // Records of archives tell where something was: they keep nothing.
        if kind != "archive" {
            texts(doc, &mut named);
        }
    }
    database.vms.iter().for_each(|vm| texts(vm, &mut named));
    for (_, store) in store_dirs(home, database) {
        for name in names_in(&store) {
            if !STORE_CONTENT.contains(&name.as_str()) {
                found.push(format!("{} belongs to nothing", store.join(name).display()));
            }
        }
        for name in names_in(&store.join("layers")) {
            let path = store.join("layers").join(&name);
            if !known.contains(&path) {
                found.push(format!("{} belongs to no layer", path.display()));
            }
        }
        for name in names_in(&store.join("vms")) {
            if !ids.contains(name.as_str()) {
                found.push(format!("home folder {name} belongs to no VM"));
            }
        }
        for kind in ["memory", "boot"] {
            for name in names_in(&store.join(kind)) {
                let path = store.join(kind).join(name).display().to_string();
                if !named.contains(&path.as_str()) {
                    found.push(format!("{path} belongs to nothing"));
                }
            }
        }
    }
    for name in names_in(&home.join("exports")) {
        let vm = name.split('.').next().unwrap_or_default();
        let has = |kind: &str, of: &dyn Fn(&Value) -> bool| {
            let mut others = database.others.iter();
            others.any(|(found, _, doc)| found == kind && of(doc))
        };
        let recorded = has("archive", &|doc| {
            text(doc, "vm_id") == vm && !doc["memory"]["table"].is_null()
        });
        let lives = ids.contains(vm) || has("fork_point", &|doc| text(&doc["row"], "id") == vm);
        if !recorded || !lives {
            found.push(format!("page digests {name} belong to nothing"));
        }
    }
    let stores = store_dirs(home, database)
        .into_iter()
        .map(|(_, store)| store);
    for dir in stores.chain([home.to_owned()]) {
        let nursery = dir.join(".new");
        let mut spares = 0;
        for place in names_in(&nursery) {
            let place = nursery.join(place);
            // Homes are made ahead: empty directories, which `rmdir` would take.
            let spare = |name: &String| {
                let path = place.join(name);
                path.is_dir() && names_in(&path).is_empty()
            };
            let (empty, made): (Vec<_>, Vec<_>) = names_in(&place).into_iter().partition(spare);
            spares += empty.len();
            found.extend(
                made.iter()
                    .map(|name| format!("{name} was never given its name")),
            );
        }
        if spares > SPARE_HOMES {
            found.push(format!("{spares} homes are made ahead"));
        }
    }
    for name in names_in(&home.join("run")) {
        let Some((id, kind)) = name.rsplit_once('.') else {
            continue;
        };
        let known = id == "mitosed" || id.starts_with("sh-") || named.contains(&id);
        let lives = |vm: &Value| text(vm, "id") == id && has_process(vm);
        if ["sock", "vsock"].contains(&kind) && !known && !database.vms.iter().any(lives) {
            found.push(format!("socket {name} belongs to nothing"));
        }
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let inside = format!(" {}/", home.display());
    if mounts.contains(&inside) {
        found.push("a mount is left".to_owned());
    }
    found
}

/// All numbers that a document has under `pid`.
fn pids(doc: &Value, found: &mut HashSet<i64>) {
    match doc {
        Value::Array(list) => list.iter().for_each(|item| pids(item, found)),
        Value::Object(fields) => {
            found.extend(fields.get("pid").and_then(Value::as_i64));
            fields.values().for_each(|item| pids(item, found));
        }
        _ => {}
    }
}

/// VM processes of a home.
pub fn processes(home: &Path) -> Vec<i64> {
    let mark = format!("{HOME_MARK}={}", home.display());
    let of_home = |pid: &i64| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut parts = environment.split(|byte| *byte == 0);
        parts.any(|part| part == mark.as_bytes())
    };
    names_in(Path::new("/proc"))
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter(of_home)
        .collect()
}

fn wrong_processes(home: &Path, database: &Database, shells: usize) -> Vec<String> {
    let mut known = HashMap::new();
    let mut found = Vec::new();
    for vm in database.vms.iter().filter(|vm| has_process(vm)) {
        let pid = vm["pid"].as_i64().unwrap_or_default();
        if let Some(other) = known.insert(pid, text(vm, "id")) {
            found.push(format!("process {pid} is {other} and {}", text(vm, "id")));
        }
    }
    for (_, id, doc) in &database.others {
        let mut theirs = HashSet::new();
        pids(doc, &mut theirs);
        known.extend(theirs.into_iter().map(|pid| (pid, id.as_str())));
    }
    let all = processes(home);
    for (pid, owner) in &known {
        if !all.contains(pid) {
            found.push(format!("process {pid} of {owner} is not there"));
        }
    }
    let idle = all.iter().filter(|pid| !known.contains_key(pid)).count();
    // Shells of the pool and the seed that bears more of them.
    if idle > shells + 1 {
        found.push(format!("{idle} processes belong to nothing"));
    }
    found
}

/// Whether the record has a layer.
fn is_layer(home: &Path, id: &str) -> bool {
    read(home).is_ok_and(|database| database.layers.contains_key(id))
}

/// What `qemu-img check` says against the disks of VMs that are off.
pub fn broken_disks(home: &Path) -> Vec<String> {
    let Ok(database) = read(home) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for vm in database.vms.iter().filter(|vm| !has_process(vm)) {
        for disk in vm["disks"].as_array().into_iter().flatten() {
            let Some(layer) = database.layers.get(text(disk, "top")) else {
                continue;
            };
            if layer["format"] != "qcow2" {
                continue;
            }
            let check = Command::new("qemu-img")
                .args(["check", "-q", text(layer, "path")])
                .output();
            match check {
                Ok(done) if done.status.success() => {}
                // A child that was powered off gives its disks back.
                Ok(_) if !is_layer(home, text(disk, "top")) => {}
                Ok(done) => found.push(format!(
                    "{}: {}",
                    text(layer, "path"),
                    String::from_utf8_lossy(&done.stderr)
                )),
                Err(error) => found.push(format!("qemu-img: {error}")),
            }
        }
    }
    found
}
