/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "string.h"

/*
 * Copies and fills use the string instructions: written as loops, the compiler would turn them into
 * calls of themselves.
 */
void *memcpy(void *to, const void *from, size_t n)
{
	void *d = to;
	size_t words = n / 8, bytes = n % 8;

	__asm__ volatile("rep movsq" : "+D"(d), "+S"(from), "+c"(words) : : "memory");
	__asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(bytes) : : "memory");
	return to;
}

void *memmove(void *to, const void *from, size_t n)
{
	u8 *d = (u8 *)to + n;
	const u8 *s = (const u8 *)from + n;

	if (to <= from || (const u8 *)from + n <= (u8 *)to)
		return memcpy(to, from, n);
	while (n--) {
		*--d = *--s;
		__asm__ volatile("" : : : "memory");
	}
	return to;
}

void *memset(void *to, int byte, size_t n)
{
	void *d = to;
	u64 word = 0x0101010101010101UL * (u8)byte;
	size_t words = n / 8, bytes = n % 8;

	__asm__ volatile("rep stosq" : "+D"(d), "+c"(words) : "a"(word) : "memory");
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(bytes) : "a"(word) : "memory");
	return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const u8 *p = a, *q = b;

	for (; n; n--, p++, q++)
		if (*p != *q)
			return *p - *q;
	return 0;
}

size_t strlen(const char *s)
{
	size_t n = 0;

	while (s[n]) {
		n++;
		__asm__ volatile("" : : : "memory");
	}
	return n;
}

int strcmp(const char *a, const char *b)
{
	for (; *a && *a == *b; a++, b++)
		;
	return (u8)*a - (u8)*b;
}

int strncmp(const char *a, const char *b, size_t n)
{
	for (; n && *a && *a == *b; n--, a++, b++)
		;
	return n ? (u8)*a - (u8)*b : 0;
}
