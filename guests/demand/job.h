/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The contract of demand's kernel and its program: the program's address space, the calls, and what
 * memory holds at the end.
 *
 *   heap    zero-filled on demand: a read maps the one zero page, a write a page of its own. The
 *           program writes the first three quarters, the kernel the last one by SYS_FILL (so it
 *           faults at CPL 0 on the program's memory); every DISCARD_STEP-th page is then given
 *           back, reads as zero again, and gets one word.
 *   shared  copy-on-write: the program reads all and writes every COPY_STEP-th page.
 */
#ifndef JOB_H
#define JOB_H

#include "hash.h"
#include "user.h"

#define USER_TEXT (1UL << 40)
#define USER_HEAP (USER_TEXT + (64UL << 30))
#define USER_SHARED (USER_TEXT + (128UL << 30))
#define USER_STACK (USER_TEXT + (192UL << 30))
#define USER_STACK_SIZE (16 * PAGE_SIZE)

#define SYS_WRITE 1   /* (text, bytes) */
#define SYS_FILL 2    /* (first word, words, index of the first word) */
#define SYS_DISCARD 3 /* (page) */

#define WORDS_PER_PAGE (PAGE_SIZE / sizeof(u64))
#define READ_FIRST_STEP 2
#define COPY_STEP 3
#define DISCARD_STEP 8

#define BAD_HEAP 1
#define BAD_SHARED 2
#define BAD_DISCARD 3

/* On the program's stack when it starts. */
struct job {
	u64 heap_pages, shared_pages, seed;
	u64 checksum; /* the program's answer */
};

static inline u64 kernel_part(u64 heap_pages)
{
	return heap_pages - heap_pages / 4;
}

static inline u64 heap_word(u64 i, u64 seed)
{
	return (i + seed) * GOLDEN;
}

static inline u64 shared_word(u64 i, u64 seed)
{
	return ~(i + seed) * GOLDEN;
}

#endif
