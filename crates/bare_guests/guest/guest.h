/* What the parts of the bare-metal guest share. Simple integer instructions only: some hosts
 * emulate guest code and know no SSE, no IRET outside real mode and no string search. */

#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define MIB (1ul << 20)
#define PAGE_BYTES 4096ul

/* Where touched memory starts; the guest itself ends below. */
#define AREA_START (16 * MIB)

struct options {
	char mode[16];
	u64 touch_mib;
	u64 late;
	u64 percent;   /* pages a dirty command writes, per cent of the touched ones */
	u64 scatter;   /* write pseudo-random pages instead of the first ones */
	u64 write;     /* counter: also write one touched page per iteration */
	u64 idle;      /* wait with HLT and the serial interrupt instead of spinning */
	u64 every;     /* report every so many iterations; 0: every report_ticks */
	u64 report_ticks;
	u64 thre;      /* wait for the transmitter before each byte */
	u64 slot;      /* virtio-mmio slot */
	u64 blocks;    /* disk: blocks of 4 KiB to use */
	u64 flush;     /* disk: writes per flush */
	u64 echo;      /* net: send back what is received */
};

struct machine {
	const char *command_line;
	u64 ram_end; /* end of the RAM that starts at 1 MiB */
	u64 rsdp;
};

extern struct options options;
extern struct machine machine;

/* start.S */
extern volatile u32 ap_count;
extern u8 ap_start[], ap_end[];
void interrupt_entry(void);

/* text.c */
void put_char(char c);
void put_text(const char *text);
void put_hex(u64 value);
void put_decimal(u64 value);
void put_pair(const char *key, u64 value);
void fail(const char *what, u64 value);

/* clock.c */
void tick(void);
int report_due(void);

/* serial.c */
int serial_read(void);
void serve(void);
void serve_rarely(void);
void report_gap(void);
void idle_start(void);

/* memory.c */
void touch_area(void);
void dirty_area(u64 percent);
void dirty_next(void);
void verify_area(void);

/* modes */
void run_counter(void);
void run_dirty(void);
void run_disk(void);
void report_latency(void);
void run_net(void);
void run_smp(void);
extern volatile u64 counter;

static inline void out8(u16 port, u8 value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline u8 in8(u16 port)
{
	u8 value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline u64 rdtsc(void)
{
	u32 low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (u64)high << 32 | low;
}

static inline u32 mmio_read(u64 address)
{
	u32 value;
	__asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(address) : "memory");
	return value;
}

static inline void mmio_write(u64 address, u32 value)
{
	__asm__ volatile("movl %0, (%1)" : : "r"(value), "r"(address) : "memory");
}

static inline void barrier(void)
{
	__asm__ volatile("lock addq $0, (%%rsp)" : : : "memory", "cc");
}

#endif
