/* Device set-up (virtio 1.2, 3.1.1 and 4.2.3.1) and the two halves of a queue. */

#include "virtio.h"

#define SLOT_START 0xfeb00000ul
#define SLOT_BYTES 0x1000ul

#define MAGIC 0x000
#define VERSION 0x004
#define DEVICE_ID 0x008
#define DEVICE_FEATURES 0x010
#define DEVICE_FEATURES_SELECT 0x014
#define DRIVER_FEATURES 0x020
#define DRIVER_FEATURES_SELECT 0x024
#define QUEUE_SELECT 0x030
#define QUEUE_SIZE_MAX 0x034
#define QUEUE_SIZE_SET 0x038
#define QUEUE_READY 0x044
#define QUEUE_NOTIFY 0x050
#define STATUS 0x070
#define QUEUE_DESCRIPTORS 0x080
#define QUEUE_AVAILABLE 0x090
#define QUEUE_USED 0x0a0

#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4
#define STATUS_FEATURES_OK 8
#define FEATURE_VERSION_1_HIGH 1
#define NO_INTERRUPT 1

u64 virtio_base(void)
{
	return SLOT_START + options.slot * SLOT_BYTES;
}

static void set_address(u64 base, u32 at, volatile void *part)
{
	mmio_write(base + at, (u32)(u64)part);
	mmio_write(base + at + 4, (u32)((u64)part >> 32));
}

static void queue_start(u64 base, struct queue *queue)
{
	mmio_write(base + QUEUE_SELECT, queue->number);
	u32 max = mmio_read(base + QUEUE_SIZE_MAX);
	if (max < QUEUE_SIZE)
		fail("queue size", max);
	queue->available.flags = NO_INTERRUPT;
	mmio_write(base + QUEUE_SIZE_SET, QUEUE_SIZE);
	set_address(base, QUEUE_DESCRIPTORS, queue->descriptors);
	set_address(base, QUEUE_AVAILABLE, &queue->available);
	set_address(base, QUEUE_USED, &queue->used);
	mmio_write(base + QUEUE_READY, 1);
}

/* Starts the device in the chosen slot and returns the low features both sides have. */
u64 virtio_start(u32 device_id, u32 features, struct queue *queues, u32 count)
{
	u64 base = virtio_base();
	if (mmio_read(base + MAGIC) != 0x74726976 || mmio_read(base + VERSION) != 2)
		fail("no device in slot", options.slot);
	if (mmio_read(base + DEVICE_ID) != device_id)
		fail("device id", mmio_read(base + DEVICE_ID));
	mmio_write(base + STATUS, 0);
	mmio_write(base + STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
	mmio_write(base + DEVICE_FEATURES_SELECT, 0);
	features &= mmio_read(base + DEVICE_FEATURES);
	mmio_write(base + DRIVER_FEATURES_SELECT, 0);
	mmio_write(base + DRIVER_FEATURES, features);
	mmio_write(base + DRIVER_FEATURES_SELECT, 1);
	mmio_write(base + DRIVER_FEATURES, FEATURE_VERSION_1_HIGH);
	u32 status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
	mmio_write(base + STATUS, status);
	if (!(mmio_read(base + STATUS) & STATUS_FEATURES_OK))
		fail("features refused", features);
	for (u32 i = 0; i < count; i++) {
		queues[i].number = i;
		queue_start(base, &queues[i]);
	}
	mmio_write(base + STATUS, status | STATUS_DRIVER_OK);
	return features;
}

/* Hands the chain that starts at descriptor HEAD to the device. */
void queue_offer(struct queue *queue, u16 head)
{
	u16 index = queue->available.index;
	queue->available.ring[index % QUEUE_SIZE] = head;
	barrier();
	queue->available.index = (u16)(index + 1);
	barrier();
	tick();
	mmio_write(virtio_base() + QUEUE_NOTIFY, queue->number);
	tick();
}

/* Takes one finished chain; returns 0 where there is none. */
int queue_take(struct queue *queue, u32 *head, u32 *bytes)
{
	if (queue->used.index == queue->used_seen)
		return 0;
	barrier();
	*head = queue->used.ring[queue->used_seen % QUEUE_SIZE].id;
	*bytes = queue->used.ring[queue->used_seen % QUEUE_SIZE].bytes;
	queue->used_seen++;
	return 1;
}
