/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Self-modifying code. Whole sweeps write a function into every page and only then run them all, so
 * that code lives through its page being taken away; other stages rewrite a function in place,
 * through a second mapping of the frame, across a page boundary, from inside itself just ahead of
 * its own execution, and as data in between. Every call's result is verified.
 *
 * Where the writer uses the address that runs, the processor must see it by itself; through another
 * address a serializing instruction comes first (SDM vol. 3, 9.1.3 and 12.6).
 */
#include "guest.h"

#define CODE_RIGHTS (PT_PRESENT | PT_WRITABLE)
#define MOV_SIZE 5
#define STRADDLE_STEP 8
#define LOOPS 40

static u64 pages = DEFAULT_pages, rounds = DEFAULT_rounds;
static u64 first;    /* the pages, in the identity map */
static u64 checksum;

static u64 page_at(u64 i)
{
	return first + i * PAGE_SIZE;
}

static u64 alias_at(u64 i)
{
	return FIRST_GVA + i * PAGE_SIZE;
}

/* Functions lie at another offset in every page. */
static u64 offset_of(u64 i)
{
	return i * 208 % (PAGE_SIZE - 256);
}

static u32 value_of(u64 i, u64 generation)
{
	return (u32)mix(i + (generation << 40));
}

static u64 put_bytes(u64 at, const u8 *bytes, u64 n)
{
	for (u64 i = 0; i < n; i++)
		((volatile u8 *)at)[i] = bytes[i];
	return at + n;
}

static u64 put_word(u64 at, u32 word)
{
	*(volatile u32 *)at = word;
	return at + sizeof(word);
}

/* mov $value, %eax; ret */
static void put_function(u64 at, u32 value)
{
	*(volatile u8 *)at = 0xb8;
	put_word(at + 1, value);
	*(volatile u8 *)(at + 5) = 0xc3;
}

static void call(u64 at, u32 expected, const char *what)
{
	u32 value = ((u32(*)(void))at)();

	if (value != expected)
		fail("%s at %p: 0x%08x, not 0x%08x", what, (void *)at, value, expected);
	checksum = checksum_add(checksum, value);
}

static void sweep(u64 generation)
{
	for (u64 i = 0; i < pages; i++)
		put_function(page_at(i) + offset_of(i), value_of(i, generation));
	for (u64 i = 0; i < pages; i++)
		call(page_at(i) + offset_of(i), value_of(i, generation), "code");
}

/* Only the constant changes, and the new code runs at once. */
static void rewrite_in_place(u64 generation)
{
	for (u64 i = 0; i < pages; i++) {
		u64 at = page_at(i) + offset_of(i);

		call(at, value_of(i, generation - 1), "old code");
		put_word(at + 1, value_of(i, generation));
		call(at, value_of(i, generation), "rewritten code");
	}
}

/* Written here, run there, both ways round. */
static void rewrite_through_alias(u64 generation)
{
	for (u64 i = 0; i < pages; i++) {
		u64 here = page_at(i) + offset_of(i), there = alias_at(i) + offset_of(i);

		call(there, value_of(i, generation - 1), "code at its alias");
		put_word(there + 1, ~value_of(i, generation));
		serialize();
		call(here, ~value_of(i, generation), "code written through its alias");
		put_word(here + 1, value_of(i, generation));
		serialize();
		call(there, value_of(i, generation), "code run through its alias");
	}
}

/*
 * movb $byte, constant(%rip); [jmp to the next instruction;] mov $constant, %eax; ret: returns what
 * it has just written.
 */
static void patch_ahead(u64 i, u64 generation, bool jump)
{
	u64 start = page_at(i) + offset_of(i) + 32, at = start;
	u32 value = value_of(i, generation);

	at = put_bytes(at, (const u8[]){ 0xc6, 0x05 }, 2);
	at = put_word(at, jump ? 4 : 2);
	at = put_bytes(at, (const u8[]){ (u8)~value }, 1);
	if (jump)
		at = put_bytes(at, (const u8[]){ 0xeb, 0x00 }, 2);
	put_function(at, value);
	call(start, (value & 0xffff00ff) | (u8)~value << 8, "code that patches ahead of itself");
	put_word(at + 1, value + 1);
	call(start, ((value + 1) & 0xffff00ff) | (u8)~value << 8, "code that patches itself again");
}

/* A loop that adds a constant and increments that constant: 1 + 2 + ... + LOOPS. */
static void patch_in_loop(u64 i)
{
	u64 start = page_at(i) + offset_of(i) + 64, at = start;

	at = put_bytes(at, (const u8[]){ 0x31, 0xc0, 0xb9 }, 3); /* xor %eax, %eax; mov $LOOPS, %ecx */
	at = put_word(at, LOOPS);
	at = put_bytes(at, (const u8[]){ 0x05 }, 1); /* add $1, %eax */
	at = put_word(at, 1);
	at = put_bytes(at, (const u8[]){ 0xff, 0x05 }, 2); /* incl the constant, which lies 10 bytes back */
	at = put_word(at, (u32)-10);
	put_bytes(at, (const u8[]){ 0xff, 0xc9, 0x75, 0xf1, 0xc3 }, 5); /* dec %ecx; jnz to the add; ret */
	call(start, LOOPS * (LOOPS + 1) / 2, "loop that patches itself");
}

/*
 * The function begins in page i, 1..4 bytes of its constant lie in page i + 1; then these alone are
 * rewritten.
 */
static void straddle(u64 i, u64 generation)
{
	u64 bytes = 1 + i / STRADDLE_STEP % 4, start = page_at(i + 1) + bytes - MOV_SIZE;
	u32 value = value_of(i, generation), kept = bytes == 4 ? 0 : ~0U >> 8 * bytes;

	put_function(start, value);
	call(start, value, "code across two pages");
	for (u64 k = 0; k < bytes; k++)
		*(volatile u8 *)(page_at(i + 1) + k) ^= 0xff;
	call(start, value ^ ~kept, "code with its second page rewritten");
}

/* The page's code gives way to data, and the data to code again. */
static void reuse_as_data(u64 i, u64 generation)
{
	u64 *words = (u64 *)page_at(i), sum = 0;

	for (u64 k = 0; k < PAGE_SIZE / 8; k++)
		words[k] = mix(k + i);
	for (u64 k = 0; k < PAGE_SIZE / 8; k++)
		sum += words[k] - mix(k + i);
	if (sum)
		fail("page %lu does not keep data", i);
	put_function(page_at(i) + offset_of(i), value_of(i, generation));
	call(page_at(i) + offset_of(i), value_of(i, generation), "code after data");
}

static void run_round(u64 round)
{
	u64 generation = round * 16;

	sweep(generation);
	sweep(generation + 1);
	rewrite_in_place(generation + 2);
	rewrite_through_alias(generation + 3);
	for (u64 i = 0; i < pages; i += 4) {
		patch_ahead(i, generation + 4, false);
		patch_ahead(i, generation + 5, true);
		patch_in_loop(i);
	}
	for (u64 i = 0; i + 1 < pages; i += STRADDLE_STEP)
		straddle(i, generation + 6);
	for (u64 i = 0; i < pages; i += 3)
		reuse_as_data(i, generation + 7);
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "pages", &pages, 2, 1UL << 20 },
		{ "rounds", &rounds, 1, 1UL << 24 },
	};
	u64 root;

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	first = (u64)ram_alloc(pages * PAGE_SIZE, PAGE_SIZE);
	root = space_create();
	for (u64 i = 0; i < pages; i++)
		map_page(root, alias_at(i), page_at(i), CODE_RIGHTS);
	write_cr3(root);
	for (u64 round = 0; round < rounds; round++)
		run_round(round);
	printf("%lu pages of code, %lu rounds\n", pages, rounds);
	finish(checksum, true);
}
