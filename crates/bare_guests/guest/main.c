/* Finds command line and memory, reads the options, runs the mode.
 *
 * Options are KEY=VALUE words on the command line, see struct options:
 *   mode=counter|dirty|disk|net|smp touch=MIB percent=N scatter=0|1 write=0|1 idle=0|1
 *   every=N ticks=N thre=0|1 slot=N blocks=N flush=N echo=0|1 */

#include "guest.h"

struct options options = {
	.mode = "counter", .percent = 10, .report_ticks = 1ul << 26, .blocks = 64, .flush = 8,
};
struct machine machine;

static u32 load32(u64 address)
{
	return *(volatile u32 *)address;
}

static u64 load64(u64 address)
{
	return *(volatile u64 *)address;
}

/* Takes a usable range of the memory map; the one that holds 1 MiB counts. */
static void take_range(u64 start, u64 bytes, u32 kind)
{
	if (kind == 1 && start <= MIB && MIB < start + bytes)
		machine.ram_end = start + bytes;
}

static void read_boot_params(u64 page)
{
	machine.command_line = (const char *)(u64)load32(page + 0x228);
	machine.rsdp = load64(page + 0x70);
	u32 count = load32(page + 0x1e8) & 0xff;
	for (u32 i = 0; i < count; i++) {
		u64 entry = page + 0x2d0 + 20 * i;
		take_range(load64(entry), load64(entry + 8), load32(entry + 16));
	}
}

static void read_start_info(u64 info)
{
	machine.command_line = (const char *)load64(info + 24);
	machine.rsdp = load64(info + 32);
	u64 map = load64(info + 40);
	u32 count = load32(info + 48);
	for (u32 i = 0; i < count; i++) {
		u64 entry = map + 24 * i;
		take_range(load64(entry), load64(entry + 8), load32(entry + 16));
	}
}

/* Returns the text after KEY= where a word of the command line starts so. */
static const char *find(const char *key)
{
	const char *at = machine.command_line;
	while (at && *at) {
		u64 i = 0;
		while (key[i] && at[i] == key[i])
			i++;
		if (!key[i] && at[i] == '=')
			return at + i + 1;
		while (*at && *at != ' ')
			at++;
		while (*at == ' ')
			at++;
	}
	return 0;
}

static void read_number(const char *key, u64 *value)
{
	const char *text = find(key);
	if (!text)
		return;
	*value = 0;
	for (; *text >= '0' && *text <= '9'; text++)
		*value = *value * 10 + (u64)(*text - '0');
}

static void read_options(void)
{
	const char *mode = find("mode");
	if (mode) {
		u64 i = 0;
		for (; i < sizeof(options.mode) - 1 && mode[i] && mode[i] != ' '; i++)
			options.mode[i] = mode[i];
		options.mode[i] = 0;
	}
	read_number("touch", &options.touch_mib);
	read_number("late", &options.late);
	read_number("percent", &options.percent);
	read_number("scatter", &options.scatter);
	read_number("write", &options.write);
	read_number("idle", &options.idle);
	read_number("every", &options.every);
	read_number("ticks", &options.report_ticks);
	read_number("thre", &options.thre);
	read_number("slot", &options.slot);
	read_number("blocks", &options.blocks);
	read_number("flush", &options.flush);
	read_number("echo", &options.echo);
}

static int is_mode(const char *name)
{
	u64 i = 0;
	while (name[i] && options.mode[i] == name[i])
		i++;
	return options.mode[i] == name[i];
}

void guest_main(u64 pvh, u64 boot)
{
	if (pvh)
		read_start_info(boot);
	else
		read_boot_params(boot);
	read_options();
	tick();
	touch_area();
	if (options.idle)
		idle_start();
	if (is_mode("counter"))
		run_counter();
	else if (is_mode("dirty"))
		run_dirty();
	else if (is_mode("disk"))
		run_disk();
	else if (is_mode("net"))
		run_net();
	else if (is_mode("smp"))
		run_smp();
	put_text("E mode ");
	put_text(options.mode);
	put_char('\n');
}

/* Calls that the compiler makes by itself. */
void *memset(void *to, int value, u64 bytes)
{
	u8 *at = to;
	while (bytes--)
		*at++ = (u8)value;
	return to;
}

void *memcpy(void *to, const void *from, u64 bytes)
{
	u8 *at = to;
	const u8 *source = from;
	while (bytes--)
		*at++ = *source++;
	return to;
}
