/* A minimal virtio 1.x driver over MMIO: polled split queues of eight descriptors. */

#ifndef VIRTIO_H
#define VIRTIO_H

#include "guest.h"

#define QUEUE_SIZE 8
#define DESCRIPTOR_NEXT 1
#define DESCRIPTOR_WRITE 2

struct descriptor {
	u64 address;
	u32 bytes;
	u16 flags;
	u16 next;
};

struct queue {
	struct descriptor descriptors[QUEUE_SIZE];
	struct {
		u16 flags;
		volatile u16 index;
		volatile u16 ring[QUEUE_SIZE];
	} available;
	u8 gap[2];
	struct {
		volatile u16 flags;
		volatile u16 index;
		volatile struct {
			u32 id;
			u32 bytes;
		} ring[QUEUE_SIZE];
	} used __attribute__((aligned(4)));
	u16 used_seen;
	u32 number;
} __attribute__((aligned(16)));

u64 virtio_base(void);
u64 virtio_start(u32 device_id, u32 features, struct queue *queues, u32 count);
void queue_offer(struct queue *queue, u16 head);
int queue_take(struct queue *queue, u32 *head, u32 *bytes);

#define VIRTIO_CONFIG 0x100

#endif
