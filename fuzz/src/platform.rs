//! The devices of a PC behind the ports and addresses at which guests find them.

use std::sync::Arc;

use boot::layout;
use chipset::{
    Bus, BusDevice, Ged, IoApic, KeyboardController, MsiMessage, MsiSink, PciAddress, PowerControl,
    Rtc, Serial,
};
use vcpu::Vm;
use virtio_devices::testing::HostileRegisters;

#[derive(Debug)]
struct Sink(Arc<dyn Vm>);

impl MsiSink for Sink {
    fn signal_msi(&self, message: MsiMessage) {
        self.0.signal_msi(message.address, message.data);
    }
}

/// Nobody turns anything off.
#[derive(Debug)]
struct StaysOn;

impl PowerControl for StaysOn {
    fn power_off(&self) {}
    fn reset(&self) {}
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) ports: Bus,
    pub(crate) memory: Bus,
    pub(crate) ioapic: Arc<IoApic>,
    virtio: HostileRegisters,
}

impl Platform {
    pub(crate) fn new(vm: &Arc<dyn Vm>) -> Self {
        let ioapic = IoApic::new(Arc::new(Sink(Arc::clone(vm))));
        let power: Arc<dyn PowerControl> = Arc::new(StaysOn);
        let (mut ports, mut memory) = (Bus::new(), Bus::new());
        let put = |bus: &mut Bus, base: u64, bytes: u64, device: Arc<dyn BusDevice>| {
            bus.insert(base, bytes, device)
                .expect("the layout has no overlaps");
        };
        for at in &layout::SERIAL_PORTS {
            let serial = Arc::new(Serial::new(ioapic.line(at.gsi)));
            put(&mut ports, at.port.into(), layout::SERIAL_BYTES, serial);
        }
        put(
            &mut ports,
            layout::RTC_PORT.into(),
            layout::RTC_BYTES,
            Arc::new(Rtc::new()),
        );
        let keyboard = Arc::new(KeyboardController::new(Arc::clone(&power)));
        put(&mut ports, layout::KEYBOARD_PORT.into(), 1, keyboard);
        put(
            &mut ports,
            layout::PCI_ADDRESS_PORT.into(),
            layout::PCI_ADDRESS_BYTES,
            Arc::new(PciAddress),
        );
        let ged = Arc::new(Ged::new(ioapic.line(layout::GED_GSI), power));
        put(&mut memory, layout::GED_START, layout::GED_BYTES, ged);
        put(
            &mut memory,
            layout::IOAPIC_START,
            layout::IOAPIC_BYTES,
            Arc::clone(&ioapic) as _,
        );
        let virtio = HostileRegisters::default();
        for (index, transport) in (0..).zip(virtio.transports()) {
            let slot = layout::virtio_slot(index).expect("there are few devices");
            put(&mut memory, slot.base, layout::VIRTIO_BYTES, transport);
        }
        Self {
            ports,
            memory,
            ioapic,
            virtio,
        }
    }

    /// Has the devices do what the guest asked for, and checks that a reset brings them back.
    pub(crate) fn check(mut self) {
        self.virtio.run_and_check();
    }
}
