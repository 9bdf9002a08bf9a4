/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Frames of the window, and those that have been in it. A retired frame lies poisoned for as many
 * changes as there are places for retired ones; nobody may write to it then.
 */
#include "shootdown.h"

#define RETIRED 64
#define POISON 0x6b6b6b6b6b6b6b6bUL /* the kernel's POISON_FREE */
#define WORDS (PAGE_SIZE / sizeof(u64))

static u64 retired[RETIRED], retirements, tags;

static void check_poison(u64 frame)
{
	for (u64 k = 0; k < WORDS; k++)
		if (((volatile u64 *)frame)[k] != POISON)
			cpu_fail("a retired frame has 0x%lx at 0x%lx", ((volatile u64 *)frame)[k], k * sizeof(u64));
}

/* mov $tag, %eax; ret; and the tag in the last word. */
u64 frame_new(void)
{
	u64 frame, tag = mix(++tags) >> 32;
	u64 *slot = &retired[retirements % RETIRED];

	if (*slot) {
		check_poison(*slot);
		frame_free(*slot);
		*slot = 0;
	}
	frame = frame_alloc_zeroed();
	*(volatile u64 *)frame = 0xb8 | tag << 8 | 0xc3UL << 40;
	*(volatile u64 *)(frame + PAGE_SIZE - 8) = tag;
	return frame;
}

u64 frame_tag(u64 frame)
{
	return *(volatile u64 *)(frame + PAGE_SIZE - 8);
}

void frame_retire(u64 frame)
{
	u64 *slot = &retired[retirements++ % RETIRED];

	if (*slot) {
		check_poison(*slot);
		frame_free(*slot);
	}
	for (u64 k = 0; k < WORDS; k++)
		((volatile u64 *)frame)[k] = POISON;
	*slot = frame;
}

void check_retired(void)
{
	for (u64 i = 0; i < RETIRED; i++)
		if (retired[i])
			check_poison(retired[i]);
}
