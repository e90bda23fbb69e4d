/* Text on COM1. */

#include "guest.h"

#define COM1 0x3f8
#define LINE_STATUS 5
#define TRANSMITTER_EMPTY 0x20

void put_char(char c)
{
	while (options.thre && !(in8(COM1 + LINE_STATUS) & TRANSMITTER_EMPTY))
		tick();
	tick();
	out8(COM1, (u8)c);
	tick();
}

void put_text(const char *text)
{
	while (*text)
		put_char(*text++);
}

void put_hex(u64 value)
{
	for (int shift = 60; shift >= 0; shift -= 4)
		put_char("0123456789abcdef"[value >> shift & 15]);
}

void put_decimal(u64 value)
{
	char digits[20];
	int count = 0;
	do {
		digits[count++] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	while (count)
		put_char(digits[--count]);
}

void put_pair(const char *key, u64 value)
{
	put_text(key);
	put_char('=');
	put_decimal(value);
	put_char('\n');
}

/* Reports an error and goes on serving commands, so that the host can still ask. */
void fail(const char *what, u64 value)
{
	put_text("E ");
	put_pair(what, value);
	for (;;)
		serve();
}
