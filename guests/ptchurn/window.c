/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The stages on last-level entries. A page is used just before its entry changes, so that the TLB
 * holds what invlpg must drop.
 */
#include "churn.h"

static void set_page(struct window *w, u64 i, u64 frame, u64 rights)
{
	check_stamp(gva_of(w, i), w->tag[i]);
	map_page(w->root, gva_of(w, i), frame, rights);
	invlpg(gva_of(w, i));
	w->frame[i] = frame;
}

static u64 *entry_of(struct window *w, u64 i)
{
	return table_entry(w->root, gva_of(w, i), 1, false);
}

/*
 * Every frame is written through its first mapping, then found through another one and through the
 * identity map.
 */
void map_and_remap(struct window *w)
{
	for (u64 i = 0; i < w->pages; i++) {
		map_page(w->root, gva_of(w, i), w->frame[i] = frame_alloc(), RIGHTS);
		stamp(gva_of(w, i), w->tag[i]);
	}
	for (u64 i = 0; i < w->pages / 2; i++) {
		u64 j = w->pages - 1 - i, frame_i = w->frame[i], frame_j = w->frame[j], tag = w->tag[i];

		check_stamp(frame_i, tag);
		set_page(w, i, frame_j, RIGHTS);
		set_page(w, j, frame_i, RIGHTS);
		w->tag[i] = w->tag[j];
		w->tag[j] = tag;
	}
	for (u64 i = 0; i < w->pages; i++) {
		check_stamp(gva_of(w, i), w->tag[i]);
		w->tag[i] = mix(w->tag[i]);
		stamp(w->frame[i], w->tag[i]);
		check_stamp(gva_of(w, i), w->tag[i]);
	}
}

static void write_read_only(struct window *w, u64 i)
{
	u64 gva = gva_of(w, i), *entry = entry_of(w, i);

	stamp(gva, w->tag[i]);
	*entry &= ~PT_WRITABLE;
	invlpg(gva);
	check_stamp(gva, w->tag[i]);
	w->tag[i] = mix(w->tag[i]);
	begin_fault(gva, PF_PRESENT | PF_WRITE, entry, *entry | PT_WRITABLE);
	stamp(gva, w->tag[i]);
	end_fault();
	check_stamp(w->frame[i], w->tag[i]);
}

static void run_no_execute(struct window *w, u64 i)
{
	u64 gva = gva_of(w, i) + 64, *entry = entry_of(w, i);
	u32 value = (u32)w->tag[i];

	put_code(gva, value);
	begin_fault(gva, PF_PRESENT | PF_FETCH, entry, *entry & ~PT_NX);
	run_code(gva, value);
	end_fault();
	*entry |= PT_NX;
	invlpg(gva);
	begin_fault(gva, PF_PRESENT | PF_FETCH, entry, *entry & ~PT_NX);
	run_code(gva, value);
	end_fault();
	*entry |= PT_NX;
	invlpg(gva);
}

void change_rights(struct window *w)
{
	for (u64 i = 0; i < w->pages; i += 8)
		write_read_only(w, i);
	for (u64 i = 0; i < w->pages; i += 32)
		run_no_execute(w, i);
}

/* The page goes away and another frame comes in its place when the hole is touched. */
static void punch_hole(struct window *w, u64 i, bool write)
{
	u64 gva = gva_of(w, i), *entry = entry_of(w, i), frame = frame_alloc();

	check_stamp(gva, w->tag[i]);
	unmap_page(w->root, gva);
	invlpg(gva);
	check_stamp(w->frame[i], w->tag[i]);
	frame_free(w->frame[i]);
	w->frame[i] = frame;
	w->tag[i] = mix(w->tag[i]);
	stamp(frame, ~w->tag[i]);
	begin_fault(gva, write ? PF_WRITE : 0, entry, frame | RIGHTS);
	if (write)
		stamp(gva, ~w->tag[i]);
	else
		check_stamp(gva, ~w->tag[i]);
	end_fault();
	stamp(gva, w->tag[i]);
}

void punch_holes(struct window *w)
{
	for (u64 i = 1; i < w->pages; i += 4)
		punch_hole(w, i, i & 4);
	for (u64 i = 0; i < w->pages; i++)
		check_stamp(gva_of(w, i), w->tag[i]);
}

/*
 * The pages that the stages have written through their present entries; the others were written
 * through the identity map only.
 */
static bool written_here(u64 i)
{
	return i % 8 == 0 || i % 4 == 1 || i == 3;
}

/* Frames first and tables last: the next ones to be handed out, as data, are former tables. */
void unmap_all(struct window *w)
{
	for (u64 i = 0; i < w->pages; i++) {
		u64 old = unmap_page(w->root, gva_of(w, i));
		u64 expected = w->frame[i] | RIGHTS | PT_ACCESSED | (written_here(i) ? PT_DIRTY : 0);

		if (old != expected)
			fail("entry of page %lu: 0x%016lx, not 0x%016lx", i, old, expected);
		invlpg(gva_of(w, i));
		frame_free(w->frame[i]);
	}
	for (u64 i = 0; i < w->pages; i += 512)
		prune_tables(w->root, gva_of(w, i));
	prune_tables(w->root, gva_of(w, w->pages - 1));
	if (*table_entry(w->root, w->base, 4, false))
		fail("tables are left over");
	write_cr3(read_cr3());
}
