/* Modes counter and dirty. */

#include "guest.h"

volatile u64 counter;

static void report(void)
{
	put_text("c=");
	put_hex(counter);
	put_char('\n');
}

/* Counts and reports; a clone goes on from the same value. */
void run_counter(void)
{
	u64 left = options.every;
	for (;;) {
		counter++;
		tick();
		if (options.write)
			dirty_next();
		if (options.every ? !--left : report_due()) {
			report();
			left = options.every;
		}
		if (options.idle)
			serve();
		else
			serve_rarely();
	}
}

/* Does only what commands ask for. */
void run_dirty(void)
{
	for (;;) {
		counter++;
		tick();
		if (options.idle)
			serve();
		else
			serve_rarely();
	}
}
