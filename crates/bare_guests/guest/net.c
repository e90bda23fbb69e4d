/* Mode net: sends numbered broadcast frames and counts what comes in; with echo=1 sends frames of
 * its type back. The MAC is read before each frame, since a clone gets another one.
 *
 * A frame: destination, source, type 0x88b5, then 8 bytes of number, little-endian. */

#include "virtio.h"

#define DEVICE_NET 1
#define FEATURE_MAC (1u << 5)
#define HEADER_BYTES 12
#define FRAME_BYTES_MAX 1536
#define FRAME_BYTES_MIN 60
#define MAC_BYTES 6
#define TYPE_AT 12
#define NUMBER_AT 14
#define TYPE_HIGH 0x88
#define TYPE_SENT 0xb5
#define TYPE_ECHO 0xb6

struct buffer {
	u8 header[HEADER_BYTES];
	volatile u8 frame[FRAME_BYTES_MAX];
};

static struct queue queues[2];
static struct buffer input[QUEUE_SIZE];
static struct buffer output;
static u64 sent, received;

static void send(u64 bytes)
{
	u64 config = virtio_base() + VIRTIO_CONFIG;
	u64 mac = mmio_read(config) | (u64)mmio_read(config + 4) << 32;
	for (int i = 0; i < MAC_BYTES; i++)
		output.frame[MAC_BYTES + i] = (u8)(mac >> 8 * i);
	struct queue *queue = &queues[1];
	queue->descriptors[0] =
		(struct descriptor){ (u64)&output, (u32)(HEADER_BYTES + bytes), 0, 0 };
	queue_offer(queue, 0);
	u32 head, used;
	while (!queue_take(queue, &head, &used)) {
		tick();
		serve_rarely();
	}
}

static void send_number(void)
{
	for (int i = 0; i < FRAME_BYTES_MIN; i++)
		output.frame[i] = i < MAC_BYTES ? 0xff : 0;
	output.frame[TYPE_AT] = TYPE_HIGH;
	output.frame[TYPE_AT + 1] = TYPE_SENT;
	for (int i = 0; i < 8; i++)
		output.frame[NUMBER_AT + i] = (u8)(sent >> 8 * i);
	send(FRAME_BYTES_MIN);
	sent++;
}

static void echo(const struct buffer *from, u64 bytes)
{
	if (!options.echo || bytes < FRAME_BYTES_MIN || bytes > FRAME_BYTES_MAX)
		return;
	if (from->frame[TYPE_AT] != TYPE_HIGH || from->frame[TYPE_AT + 1] != TYPE_SENT)
		return;
	for (u64 i = 0; i < bytes; i++)
		output.frame[i] = from->frame[i];
	for (int i = 0; i < MAC_BYTES; i++)
		output.frame[i] = from->frame[MAC_BYTES + i];
	output.frame[TYPE_AT + 1] = TYPE_ECHO;
	send(bytes);
}

static void receive(void)
{
	struct queue *queue = &queues[0];
	u32 head, bytes;
	while (queue_take(queue, &head, &bytes)) {
		if (head >= QUEUE_SIZE || bytes < HEADER_BYTES)
			fail("received bytes", bytes);
		received++;
		echo(&input[head], bytes - HEADER_BYTES);
		queue_offer(queue, (u16)head);
	}
}

void run_net(void)
{
	virtio_start(DEVICE_NET, FEATURE_MAC, queues, 2);
	for (u16 i = 0; i < QUEUE_SIZE; i++) {
		queues[0].descriptors[i] =
			(struct descriptor){ (u64)&input[i], sizeof(input[i]), DESCRIPTOR_WRITE, 0 };
		queue_offer(&queues[0], i);
	}
	for (;;) {
		tick();
		counter++;
		receive();
		serve_rarely();
		if (!report_due())
			continue;
		send_number();
		put_text("n=");
		put_decimal(sent);
		put_text(" r=");
		put_decimal(received);
		put_char('\n');
	}
}
