/* Time between two steps of the guest: the largest one shows how long it was held. */

#include "guest.h"

static u64 last_tick;
static u64 gap_max;
static u64 backward;
static u64 next_report;

/* Notes the time since the last call; called around everything that leaves the guest. */
void tick(void)
{
	u64 now = rdtsc();
	if (!last_tick)
		last_tick = now;
	if (now < last_tick)
		backward++;
	else if (now - last_tick > gap_max)
		gap_max = now - last_tick;
	last_tick = now;
}

/* Prints the largest gap in TSC ticks and starts anew; a clock that ran backwards is an error. */
void report_gap(void)
{
	u64 gap = gap_max;
	if (backward)
		put_pair("E backward", backward);
	put_pair("gap", gap);
	tick();
	gap_max = 0;
	backward = 0;
}

/* Returns whether the time between two reports has passed. */
int report_due(void)
{
	if (last_tick - next_report >= 1ul << 63)
		return 0;
	next_report = last_tick + options.report_ticks;
	return 1;
}
