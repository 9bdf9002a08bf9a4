/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * TLB shootdown. The CPUs take turns at changing the page tables that all of them use: pages move to
 * other frames, lose and regain the rights to write and to be executed, vanish and come back, singly
 * and in runs. Where the manual asks for it the change is followed by a shootdown: INVLPG, or CR3 or
 * CR4.PGE rewritten, on every CPU. From its end on no CPU may see the page as it was; the frame that
 * it had is poisoned then, and must stay so. Where rights only grow nothing is flushed.
 */
#include "shootdown.h"

#define MAX_RUN 8
#define RIGHTS (PT_PRESENT | PT_WRITABLE)

enum change { MOVE, PROTECT, ALLOW, FORBID_CODE, ALLOW_CODE, UNMAP, MAP, NEW_TABLE, NR_CHANGES };

u64 pages = DEFAULT_pages, root;
struct page *window;

static u64 changes = DEFAULT_changes, turn = DEFAULT_turn, done, state, made[NR_CHANGES];
static struct barrier turns, ends;
static u64 writing;

static u64 *entry_of(u64 i)
{
	return table_entry(root, gva_of(i), 1, true);
}

/* What the page's entry becomes; returns false if the change is none, for the page as it is. */
static bool changed(enum change change, u64 i, u64 *entry)
{
	u64 old = *entry;

	switch (change) {
	case MOVE:
		if (old)
			*entry = frame_new() | (old & ~PT_ADDR_MASK);
		break;
	case PROTECT:
		*entry &= ~PT_WRITABLE;
		break;
	case ALLOW:
		*entry |= old ? PT_WRITABLE : 0;
		break;
	case FORBID_CODE:
		*entry |= old ? PT_NX : 0;
		break;
	case ALLOW_CODE:
		*entry &= ~PT_NX;
		break;
	case UNMAP:
		*entry = GONE;
		break;
	default:
		if (!old)
			*entry = frame_new() | RIGHTS | (is_global(i) ? PT_GLOBAL : 0);
	}
	return *entry != old;
}

/* A run of pages whose frames all change, as one step with one shootdown. */
static void change_run(enum change change, u64 first, u64 n, enum flush how)
{
	bool grows = change == ALLOW || change == ALLOW_CODE || change == MAP, any = false;
	u64 old[MAX_RUN];

	for (u64 k = 0; k < n; k++) {
		u64 i = first + k, entry = old[k] = window[i].entry;

		if (!changed(change, i, &entry))
			continue;
		any = true;
		store_full(&window[i].sequence, window[i].sequence + 1);
		window[i].entry = entry;
		store_release(entry_of(i), entry);
	}
	if (any && !grows)
		shootdown(first, n, how);
	for (u64 k = 0; k < n; k++) {
		struct page *page = &window[first + k];

		if (page->entry == old[k])
			continue;
		if (old[k] && (page->entry ^ old[k]) & PT_ADDR_MASK)
			frame_retire(old[k] & PT_ADDR_MASK);
		store_release(&page->sequence, page->sequence + 1);
		made[change]++;
	}
}

/*
 * The table of 512 entries around page i gives way to a copy, in which i lies elsewhere. What is
 * cached of the directory must go as well, which every way of flushing does (SDM vol. 3, 4.10.4.1).
 */
static void change_table(u64 i, enum flush how)
{
	u64 *directory = table_entry(root, gva_of(i), 2, true), old = *directory, entry = window[i].entry;
	u64 table = frame_alloc(), frame = entry & PT_ADDR_MASK;

	if (!entry) {
		frame_free(table);
		return;
	}
	entry = frame_new() | (entry & ~PT_ADDR_MASK);
	memcpy((void *)table, (void *)(old & PT_ADDR_MASK), PAGE_SIZE);
	((u64 *)table)[gva_of(i) >> 12 & 511] = entry;
	store_full(&window[i].sequence, window[i].sequence + 1);
	window[i].entry = entry;
	store_release(directory, table | (old & ~PT_ADDR_MASK));
	shootdown(i, 1, how);
	frame_retire(frame);
	frame_retire(old & PT_ADDR_MASK);
	store_release(&window[i].sequence, window[i].sequence + 1);
	made[NEW_TABLE]++;
}

/* Depends on the number of the change alone. Global pages are not flushed by way of CR3. */
static void make_change(void)
{
	u64 random = random_next(&state), first = (random >> 8) % pages, n = 1 + (random >> 40) % MAX_RUN;
	enum change change = random % NR_CHANGES;
	enum flush how = (random >> 48) % NR_FLUSHES;

	n = min_u64(random >> 52 & 1 ? n : 1, pages - first);
	for (u64 k = 0; k < n; k++)
		if (how == BY_CR3 && is_global(first + k))
			how = BY_PGE;
	if (change == NEW_TABLE)
		change_table(first, BY_INVLPG);
	else
		change_run(change, first, n, how);
	for (u64 k = 0; k < n; k++)
		if (!access_page(first + k))
			cpu_fail("page %lu changes under its writer's hands", first + k);
}

/* One turn after the other, until all changes are made; others access all pages once at least. */
static void take_turns(u64 unused)
{
	(void)unused;
	for (u64 writer = 0; load_acquire(&done) < changes; writer = (writer + 1) % nr_cpus) {
		barrier_wait(&turns);
		if (writer == cpu_id()) {
			for (u64 k = 0; k < turn && done < changes; k++, done++)
				make_change();
			store_release(&writing, writing + 1);
		} else {
			u64 now = load_acquire(&writing);

			do
				access_all();
			while (load_acquire(&writing) == now);
		}
		barrier_wait(&ends);
	}
}

static void map_window(void)
{
	root = space_create();
	window = ram_alloc(pages * sizeof(*window), PAGE_SIZE);
	for (u64 i = 0; i < pages; i++) {
		window[i].sequence = 0;
		window[i].entry = frame_new() | RIGHTS | (is_global(i) ? PT_GLOBAL : 0);
		*entry_of(i) = window[i].entry;
	}
	write_cr3(root);
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "pages", &pages, 1, 1UL << 20 },
		{ "changes", &changes, 1, 1UL << 40 },
		{ "turn", &turn, 1, 1UL << 40 },
	};
	u64 checksum = 0, there = 0;

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	map_window();
	access_init();
	shootdown_init();
	smp_start(false);
	smp_call_all(take_turns, 0);
	for (u64 i = 0; i < pages; i++) {
		u64 entry = window[i].entry;

		access_page(i);
		there += entry != GONE;
		checksum = checksum_add(checksum, entry ? (entry & ~PT_ADDR_MASK) ^ frame_tag(entry & PT_ADDR_MASK) : 0);
	}
	check_retired();
	printf("%lu changes, %lu of %lu pages are there\n", changes, there, pages);
	printf("moved %lu, made read-only %lu, unmapped %lu, tables replaced %lu\n", made[MOVE], made[PROTECT], made[UNMAP],
	       made[NEW_TABLE]);
	finish(checksum, true);
}
