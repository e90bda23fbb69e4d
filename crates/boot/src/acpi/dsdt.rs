//! The DSDT: the devices a kernel cannot find by itself.

use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package,
    Path, ResourceTemplate, Scope, Store,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::{HEADER_BYTES, table};
use crate::layout::{self, SERIAL_PORTS, SerialPort};
use crate::load::Platform;

const DSDT_REVISION: u8 = 2;
const SLEEP_TYPE_S5: u8 = 5;
const EVENT_POWER_BUTTON: u8 = 1 << 0;
const EVENT_GENERATION: u8 = 1 << 1;
/// Notification of a pressed button and of a changed generation id.
const NOTIFY_STATUS: u8 = 0x80;

/// Returns the DSDT.
pub(super) fn dsdt(platform: &Platform) -> Sdt {
    let mut devices = vec![clock(), power_button(), generation_id(), event_device()];
    for (index, port) in SERIAL_PORTS.iter().enumerate() {
        if platform.serial_ports[index] {
            devices.push(serial_port(index as u8 + 1, *port));
        }
    }
    devices.extend(
        platform
            .virtio_slots
            .iter()
            .filter_map(|slot| virtio_slot(*slot)),
    );

    let children = devices.iter().map(|device| device as &dyn Aml).collect();
    let mut body = Vec::new();
    Scope::new("_SB_".into(), children).to_aml_bytes(&mut body);
    let sleep = Package::new(vec![&SLEEP_TYPE_S5, &0u8, &0u8, &0u8]);
    Name::new("_S5_".into(), &sleep).to_aml_bytes(&mut body);

    let mut dsdt = table(*b"DSDT", HEADER_BYTES as u32, DSDT_REVISION);
    dsdt.append_slice(&body);
    dsdt
}

/// Encoded AML.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// An edge-triggered, active-high, exclusive ISA interrupt (ACPI 6.4.2.1 without flags).
struct IsaInterrupt(u8);

impl Aml for IsaInterrupt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << self.0);
    }
}

fn device(name: &str, children: Vec<&dyn Aml>) -> Encoded {
    let mut bytes = Vec::new();
    Device::new(Path::new(name), children).to_aml_bytes(&mut bytes);
    Encoded(bytes)
}

fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(name), value)
}

fn edge_interrupt(gsi: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi.into())
}

fn serial_port(number: u8, port: SerialPort) -> Encoded {
    let resources = ResourceTemplate::new(vec![
        &IO::new(port.port, port.port, 1, layout::SERIAL_BYTES as u8),
        &IsaInterrupt(port.gsi),
    ])
    .encoded();
    device(
        &format!("COM{number}"),
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &number),
            &name("_CRS", &resources),
        ],
    )
}

/// The clock has no interrupt, so none is listed and kernels offer no alarms.
fn clock() -> Encoded {
    let port = layout::RTC_PORT;
    let resources =
        ResourceTemplate::new(vec![&IO::new(port, port, 1, layout::RTC_BYTES as u8)]).encoded();
    device(
        "RTC_",
        vec![
            &name("_HID", &EISAName::new("PNP0B00")),
            &name("_CRS", &resources),
        ],
    )
}

fn power_button() -> Encoded {
    device(
        "PWRB",
        vec![
            &name("_HID", &EISAName::new("PNP0C0C")),
            &name("_UID", &0u8),
        ],
    )
}

fn generation_id() -> Encoded {
    let (low, high) = (
        layout::GENERATION_ID as u32,
        (layout::GENERATION_ID >> 32) as u32,
    );
    device(
        "VGEN",
        vec![
            &name("_HID", &"VMGENCTR"),
            &name("_CID", &"VM_Gen_Counter"),
            &name("_DDN", &"VM_Gen_Counter"),
            &name("ADDR", &Package::new(vec![&low, &high])),
        ],
    )
}

/// The event device: its method reads the event register, which clears it, and notifies.
fn event_device() -> Encoded {
    let event_field = Field::new(
        "EREG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVNT", 32)],
    );
    let (events, button, generation) = (Path::new("EVNT"), Path::new("PWRB"), Path::new("VGEN"));
    let (address, length) = ((layout::GED_START + layout::GED_EVENT) as u32, 4u8);
    let is_button = And::new(&NoTarget, &Local(0), &EVENT_POWER_BUTTON).encoded();
    let is_generation = And::new(&NoTarget, &Local(0), &EVENT_GENERATION).encoded();
    device(
        "GED_",
        vec![
            &name("_HID", &"ACPI0013"),
            &name("_UID", &0u8),
            &name(
                "_CRS",
                &ResourceTemplate::new(vec![&edge_interrupt(layout::GED_GSI)]),
            ),
            &OpRegion::new(
                "EREG".into(),
                OpRegionSpace::SystemMemory,
                &address,
                &length,
            ),
            &event_field,
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &events),
                    &If::new(&is_button, vec![&Notify::new(&button, &NOTIFY_STATUS)]),
                    &If::new(
                        &is_generation,
                        vec![&Notify::new(&generation, &NOTIFY_STATUS)],
                    ),
                ],
            ),
        ],
    )
}

fn virtio_slot(index: u8) -> Option<Encoded> {
    let slot = layout::virtio_slot(index)?;
    let resources = ResourceTemplate::new(vec![
        &Memory32Fixed::new(true, slot.base as u32, layout::VIRTIO_BYTES as u32),
        &edge_interrupt(slot.gsi),
    ])
    .encoded();
    Some(device(
        &format!("VR{index:02}"),
        vec![
            &name("_HID", &"LNRO0005"),
            &name("_UID", &index),
            &name("_CCA", &1u8),
            &name("_CRS", &resources),
        ],
    ))
}

/// The target of an operation whose result is used in place.
struct NoTarget;

impl Aml for NoTarget {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0);
    }
}

/// Encodes early, where the parts do not live long enough to be encoded later.
trait Encode {
    fn encoded(&self) -> Encoded;
}

impl<T: Aml> Encode for T {
    fn encoded(&self) -> Encoded {
        let mut bytes = Vec::new();
        self.to_aml_bytes(&mut bytes);
        Encoded(bytes)
    }
}
