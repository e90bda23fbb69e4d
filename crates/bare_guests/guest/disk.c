/* Mode disk: writes every block with a pattern of block number and round, flushes in between,
 * reads all back, reports d=ROUND. Any surprise is an E line. A write and the flush behind it are
 * timed together. */

#include "virtio.h"

#define DEVICE_BLOCK 2
#define FEATURE_FLUSH (1u << 9)
#define REQUEST_READ 0
#define REQUEST_WRITE 1
#define REQUEST_FLUSH 4
#define SECTOR_BYTES 512
#define BLOCK_BYTES 4096
#define BLOCK_WORDS (BLOCK_BYTES / 8)
/* One word in so many carries the pattern; guest code may be slow. */
#define PATTERN_STEP 8

static struct queue queue;
static volatile u64 block[BLOCK_WORDS] __attribute__((aligned(4096)));
static struct {
	u32 kind;
	u32 reserved;
	u64 sector;
} header;
static volatile u8 status;
static int can_flush;
static struct {
	u64 count;
	u64 ticks;
	u64 max;
} latency;

/* Prints how many writes there were since the last time, their ticks together and the longest. */
void report_latency(void)
{
	put_text("l=");
	put_decimal(latency.count);
	put_char(',');
	put_decimal(latency.ticks);
	put_char(',');
	put_decimal(latency.max);
	put_char('\n');
	latency.count = latency.ticks = latency.max = 0;
}

static void note_latency(u64 ticks)
{
	latency.count++;
	latency.ticks += ticks;
	if (ticks > latency.max)
		latency.max = ticks;
}

/* Runs one request to its end. */
static void request(u32 kind, u64 index)
{
	header.kind = kind;
	header.sector = kind == REQUEST_FLUSH ? 0 : index * (BLOCK_BYTES / SECTOR_BYTES);
	status = 0xff;
	u16 into_guest = kind == REQUEST_READ ? DESCRIPTOR_WRITE : 0;
	int has_block = kind != REQUEST_FLUSH;
	queue.descriptors[0] = (struct descriptor){ (u64)&header, sizeof(header), DESCRIPTOR_NEXT,
						    has_block ? 1 : 2 };
	queue.descriptors[1] = (struct descriptor){ (u64)block, BLOCK_BYTES,
						    DESCRIPTOR_NEXT | into_guest, 2 };
	queue.descriptors[2] = (struct descriptor){ (u64)&status, 1, DESCRIPTOR_WRITE, 0 };
	queue_offer(&queue, 0);
	u32 head, bytes;
	while (!queue_take(&queue, &head, &bytes)) {
		tick();
		serve_rarely();
	}
	if (status)
		fail(kind == REQUEST_READ ? "read status" : "write status", status);
	counter++;
}

static u64 pattern(u64 index, u64 round, u64 word)
{
	return (index << 40 ^ round << 8 ^ word) * 0x9e3779b97f4a7c15ul;
}

static void write_block(u64 index, u64 round)
{
	for (u64 i = 0; i < BLOCK_WORDS; i += PATTERN_STEP)
		block[i] = pattern(index, round, i);
	u64 start = rdtsc();
	request(REQUEST_WRITE, index);
	if (can_flush && options.flush && index % options.flush == options.flush - 1)
		request(REQUEST_FLUSH, 0);
	note_latency(rdtsc() - start);
}

static void verify_block(u64 index, u64 round)
{
	for (u64 i = 0; i < BLOCK_WORDS; i += PATTERN_STEP)
		block[i] = 0;
	request(REQUEST_READ, index);
	for (u64 i = 0; i < BLOCK_WORDS; i += PATTERN_STEP)
		if (block[i] != pattern(index, round, i))
			fail("block differs", index);
}

void run_disk(void)
{
	can_flush = virtio_start(DEVICE_BLOCK, FEATURE_FLUSH, &queue, 1) != 0;
	u64 base = virtio_base() + VIRTIO_CONFIG;
	u64 sectors = mmio_read(base) | (u64)mmio_read(base + 4) << 32;
	u64 blocks = sectors / (BLOCK_BYTES / SECTOR_BYTES);
	if (blocks > options.blocks)
		blocks = options.blocks;
	if (!blocks)
		fail("disk sectors", sectors);
	for (u64 round = 1;; round++) {
		for (u64 i = 0; i < blocks; i++)
			write_block(i, round);
		for (u64 i = 0; i < blocks; i++)
			verify_block(i, round);
		put_pair("d", round);
	}
}
