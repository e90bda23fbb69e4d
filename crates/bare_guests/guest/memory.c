/* The touched area: word 0 of each page holds a value that never changes, word 1 is written. */

#include "guest.h"

#define PAGE_WORDS (PAGE_BYTES / 8)
/* Odd multiplier whose product with an index spreads over all pages. */
#define SPREAD 0x9e3779b97f4a7c15ul
#define MARK 0x5a5a000000000000ul

static u64 pages;
static u64 dirty_round;
static u64 dirty_at;

static volatile u64 *page_at(u64 index)
{
	return (volatile u64 *)(AREA_START + index * PAGE_BYTES);
}

/* Keeps the gaps of a pass over many pages small, at little cost. */
static void tick_rarely(u64 step)
{
	if (step % 64 == 0)
		tick();
}

/* Writes every page once, unless that is left to commands, and says M. */
void touch_area(void)
{
	u64 bytes = options.touch_mib * MIB;
	if (AREA_START + bytes > machine.ram_end)
		fail("touch", options.touch_mib);
	pages = bytes / PAGE_BYTES;
	for (u64 i = 0; i < pages && !options.late; i++) {
		*page_at(i) = MARK | i;
		tick_rarely(i);
	}
	put_text("M\n");
}

static u64 pick(u64 step)
{
	if (!options.scatter)
		return step % pages;
	return (u64)((unsigned __int128)(step * SPREAD) * pages >> 64);
}

/* One page out of each of count equal stretches, in the order of addresses, each round others. */
static u64 pick_of_stretch(u64 i, u64 count)
{
	u64 start = i * pages / count;
	u64 length = (i + 1) * pages / count - start;
	u64 dice = ((i + dirty_round * 977) * SPREAD) >> 32;
	return start + dice % length;
}

/* Writes a share of the pages once, each time others when scattered, and says D. */
void dirty_area(u64 percent)
{
	u64 count = pages * percent / 100;
	dirty_round++;
	for (u64 i = 0; i < count; i++) {
		u64 page = i;
		if (options.scatter == 1)
			page = pick_of_stretch(i, count);
		else if (options.scatter)
			page = pick(++dirty_at);
		page_at(page)[1] = dirty_round;
		tick_rarely(i);
	}
	put_text("D\n");
}

/* Writes one page more. */
void dirty_next(void)
{
	dirty_at++;
	if (pages)
		page_at(pick(dirty_at))[1] = dirty_at;
}

/* Checks that no page lost its value and says V. */
void verify_area(void)
{
	for (u64 i = 0; i < pages; i++) {
		if (*page_at(i) != (MARK | i))
			fail("page", i);
		tick_rarely(i);
	}
	put_text("V\n");
}
