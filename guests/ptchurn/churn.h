/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the stages of ptchurn share: the window of pages, stamps on pages, and faults that must come. */
#ifndef CHURN_H
#define CHURN_H

#include "guest.h"

#define RIGHTS (PT_PRESENT | PT_WRITABLE | PT_NX)

struct window {
	u64 root, base; /* the address space, and where the window begins in it */
	u64 pages;
	u64 *frame; /* frame[i] is mapped at base + i * PAGE_SIZE and bears the stamp tag[i] */
	u64 *tag;
};

static inline u64 gva_of(const struct window *w, u64 i)
{
	return w->base + i * PAGE_SIZE;
}

/* Three words of the page at `address` that tell whose it is; check_stamp() fails when they are others. */
void stamp(u64 address, u64 tag);
void check_stamp(u64 address, u64 tag);

/*
 * The next #PF must be at exactly `gva` with exactly this error code; the handler then stores
 * `fixed` in *entry and the access is tried again. end_fault() fails when it has not come. Any
 * other #PF ends the guest.
 */
void begin_fault(u64 gva, u64 error_code, u64 *entry, u64 fixed);
void end_fault(void);
u64 faults_taken(void);

/* Write `mov $value, %eax; ret` at `address`; call it and fail when it returns another value. */
void put_code(u64 address, u32 value);
void run_code(u64 address, u32 value);

void map_and_remap(struct window *w);
void change_rights(struct window *w);
void punch_holes(struct window *w);
void unmap_all(struct window *w);
void edit_upper_levels(struct window *w);
void split_large_page(struct window *w, u64 block);
u64 switch_spaces(u64 spaces, u64 switches);

#endif
