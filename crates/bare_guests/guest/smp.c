/* Mode smp: starts every CPU that the ACPI tables list; each counts for itself. Reports s=CPUS
 * once, then p=COUNTER... with CPU 0 first. */

#include "guest.h"

#define CPUS_MAX 64
#define TRAMPOLINE 0x8000ul

#define LOCAL_APIC 0xfee00000ul
#define APIC_ID 0x20
#define APIC_SPURIOUS 0xf0
#define APIC_ENABLE 0x100
#define APIC_COMMAND 0x300
#define APIC_COMMAND_TO 0x310
#define COMMAND_INIT 0x4500
#define COMMAND_START (0x4600 | TRAMPOLINE >> 12)

#define MADT_LOCAL_APIC 0
#define TABLE_HEADER_BYTES 36
#define MADT_HEADER_BYTES 44
/* Long enough for a CPU to take INIT, TSC ticks. */
#define INIT_TICKS (1ul << 25)

static volatile u64 counters[CPUS_MAX][8];

static u8 byte_at(u64 address)
{
	return *(volatile u8 *)address;
}

static u32 word_at(u64 address)
{
	return *(volatile u32 *)address;
}

static u64 find_madt(void)
{
	u64 xsdt = *(volatile u64 *)(machine.rsdp + 24);
	for (u64 at = xsdt + TABLE_HEADER_BYTES; at < xsdt + word_at(xsdt + 4); at += 8) {
		u64 table = *(volatile u64 *)at;
		if (word_at(table) == 0x43495041)
			return table;
	}
	fail("MADT", 0);
	return 0;
}

static void wait_ticks(u64 ticks)
{
	u64 start = rdtsc();
	while (rdtsc() - start < ticks)
		tick();
}

static void send_command(u32 id, u32 command)
{
	mmio_write(LOCAL_APIC + APIC_COMMAND_TO, id << 24);
	mmio_write(LOCAL_APIC + APIC_COMMAND, command);
}

static void start_cpu(u32 id)
{
	u32 before = ap_count;
	send_command(id, COMMAND_INIT);
	wait_ticks(INIT_TICKS);
	for (int tries = 0; tries < 2 && ap_count == before; tries++) {
		send_command(id, COMMAND_START);
		for (int i = 0; i < 64 && ap_count == before; i++)
			wait_ticks(INIT_TICKS);
	}
	if (ap_count == before)
		fail("CPU does not start", id);
}

/* Where further CPUs arrive, each on a stack of its own. */
void ap_main(u64 index)
{
	for (;;)
		counters[index][0]++;
}

void run_smp(void)
{
	for (u64 i = 0; i < (u64)(ap_end - ap_start); i++)
		*(volatile u8 *)(TRAMPOLINE + i) = ap_start[i];
	mmio_write(LOCAL_APIC + APIC_SPURIOUS, APIC_ENABLE | 0xff);
	u32 self = mmio_read(LOCAL_APIC + APIC_ID) >> 24;
	u64 madt = find_madt();
	u64 end = madt + word_at(madt + 4);
	for (u64 at = madt + MADT_HEADER_BYTES; at < end; at += byte_at(at + 1)) {
		u32 id = byte_at(at + 3);
		if (byte_at(at) == MADT_LOCAL_APIC && (word_at(at + 4) & 1) && id != self)
			start_cpu(id);
	}
	u64 cpus = ap_count + 1;
	put_pair("s", cpus);
	for (;;) {
		counters[0][0]++;
		counter++;
		tick();
		serve_rarely();
		if (!report_due())
			continue;
		put_text("p=");
		for (u64 i = 0; i < cpus; i++) {
			put_decimal(counters[i][0]);
			put_char(i + 1 < cpus ? ' ' : '\n');
		}
	}
}
