/* Commands that come in on COM1, one byte each:
 *   g  largest gap since the last question     c  counter
 *   d  dirty the configured share of pages     1 T A  dirty 1, 10, 100 per cent
 *   v  verify all touched pages             l  latency of writes to the disk
 * Any other byte asks for the gap, or in mode dirty for the configured share. */

#include "guest.h"

#define COM1 0x3f8
#define INTERRUPT_ENABLE 1
#define LINE_STATUS 5
#define INPUT_READY 0x01
#define INPUT_INTERRUPT 0x01

#define LOCAL_APIC 0xfee00000ul
#define APIC_ID 0x20
#define APIC_SPURIOUS 0xf0
#define APIC_ENABLE 0x100
#define IOAPIC 0xfec00000ul
#define IOAPIC_WINDOW 0x10
#define IOAPIC_ENTRY 0x10
#define COM1_PIN 4
#define VECTOR 0x40
#define VECTORS 256

#define SELECTOR_CODE_64 0x10
#define GATE_INTERRUPT 0x8e00

/* Time between two looks at the serial port, TSC ticks. */
#define POLL_TICKS (1ul << 18)

static u64 interrupt_table[VECTORS][2] __attribute__((aligned(16)));
static u64 next_poll;

int serial_read(void)
{
	tick();
	u8 status = in8(COM1 + LINE_STATUS);
	tick();
	if (!(status & INPUT_READY))
		return -1;
	return in8(COM1);
}

static void command(int byte)
{
	switch (byte) {
	case 'g':
		report_gap();
		break;
	case 'c':
		put_text("c=");
		put_hex(counter);
		put_char('\n');
		break;
	case '1':
		dirty_area(1);
		break;
	case 'T':
		dirty_area(10);
		break;
	case 'A':
		dirty_area(100);
		break;
	case 'd':
		dirty_area(options.percent);
		break;
	case 'v':
		verify_area();
		break;
	case 'l':
		report_latency();
		break;
	default:
		if (options.mode[0] == 'd' && options.mode[2] == 'r')
			dirty_area(options.percent);
		else
			report_gap();
	}
}

/* Carries out the commands that have arrived; with idle=1 waits for the next one. */
void serve(void)
{
	int byte;
	while ((byte = serial_read()) >= 0)
		command(byte);
	if (options.idle)
		__asm__ volatile("sti\n\thlt\n\tcli" : : : "rax", "memory", "cc");
	tick();
}

/* Looks for commands, but not more often than every POLL_TICKS. */
void serve_rarely(void)
{
	u64 now = rdtsc();
	if (next_poll - now < 1ul << 63 && next_poll != now)
		return;
	int byte;
	while ((byte = serial_read()) >= 0)
		command(byte);
	next_poll = now + POLL_TICKS;
}

/* Lets the serial interrupt end HLT. */
void idle_start(void)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) pointer = { sizeof(interrupt_table) - 1, (u64)interrupt_table };
	u64 entry = (u64)interrupt_entry;
	for (int vector = 0x20; vector < VECTORS; vector++) {
		interrupt_table[vector][0] = (entry & 0xffff) | SELECTOR_CODE_64 << 16 |
					     (u64)GATE_INTERRUPT << 32 | (entry >> 16 & 0xffff) << 48;
		interrupt_table[vector][1] = entry >> 32;
	}
	__asm__ volatile("lidt %0" : : "m"(pointer));
	mmio_write(LOCAL_APIC + APIC_SPURIOUS, APIC_ENABLE | 0xff);
	u32 id = mmio_read(LOCAL_APIC + APIC_ID);
	mmio_write(IOAPIC, IOAPIC_ENTRY + 2 * COM1_PIN + 1);
	mmio_write(IOAPIC + IOAPIC_WINDOW, id);
	mmio_write(IOAPIC, IOAPIC_ENTRY + 2 * COM1_PIN);
	mmio_write(IOAPIC + IOAPIC_WINDOW, VECTOR);
	out8(COM1 + INTERRUPT_ENABLE, INPUT_INTERRUPT);
}
