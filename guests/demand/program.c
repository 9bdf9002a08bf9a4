/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program. It is mapped at USER_TEXT, not where it is linked: all its code lies in .user, it
 * calls nothing outside and finds its data relative to RIP.
 */
#pragma clang section text = ".user.text" rodata = ".user.rodata"

#include "job.h"

void program(struct job *job);

static const char message[] = "demand: the program has run\n";

static bool fill_heap(volatile u64 *heap, const struct job *job)
{
	u64 own = kernel_part(job->heap_pages), first = own * WORDS_PER_PAGE;

	for (u64 page = 0; page < own; page += READ_FIRST_STEP)
		if (heap[page * WORDS_PER_PAGE + page % WORDS_PER_PAGE])
			return false;
	for (u64 i = 0; i < first; i++)
		heap[i] = heap_word(i, job->seed);
	syscall3(SYS_FILL, (u64)&heap[first], job->heap_pages * WORDS_PER_PAGE - first, first);
	return true;
}

static bool copy_shared(volatile u64 *shared, const struct job *job)
{
	for (u64 i = 0; i < job->shared_pages * WORDS_PER_PAGE; i++)
		if (shared[i] != shared_word(i, job->seed))
			return false;
	for (u64 page = 0; page < job->shared_pages; page += COPY_STEP)
		shared[page * WORDS_PER_PAGE + page % WORDS_PER_PAGE] = page;
	return true;
}

/*
 * A page that comes back is a recycled frame: all of it but the word written now must be zero,
 * which the checksum tells.
 */
static bool discard_heap(volatile u64 *heap, const struct job *job)
{
	for (u64 page = 0; page < job->heap_pages; page += DISCARD_STEP) {
		u64 first = page * WORDS_PER_PAGE;

		if (heap[first + 1] != heap_word(first + 1, job->seed))
			return false;
		syscall3(SYS_DISCARD, (u64)&heap[first], 0, 0);
		if (heap[first + 1])
			return false;
		heap[first + page % WORDS_PER_PAGE] = page;
	}
	return true;
}

static u64 sum_words(const volatile u64 *word, u64 words, u64 checksum)
{
	for (u64 i = 0; i < words; i++)
		checksum = checksum_add(checksum, word[i]);
	return checksum;
}

static u64 work(struct job *job)
{
	u64 *heap = (u64 *)USER_HEAP, *shared = (u64 *)USER_SHARED, checksum;
	const char *text;

	if (!fill_heap(heap, job))
		return BAD_HEAP;
	if (!copy_shared(shared, job))
		return BAD_SHARED;
	if (!discard_heap(heap, job))
		return BAD_DISCARD;
	checksum = sum_words(heap, job->heap_pages * WORDS_PER_PAGE, 0);
	job->checksum = sum_words(shared, job->shared_pages * WORDS_PER_PAGE, checksum);
	__asm__("lea %c1(%%rip), %0" : "=r"(text) : "i"(message));
	syscall3(SYS_WRITE, (u64)text, sizeof(message) - 1, 0);
	return 0;
}

__attribute__((section(".user.entry"))) void program(struct job *job)
{
	syscall3(SYS_EXIT, work(job), 0, 0);
	__builtin_unreachable();
}
