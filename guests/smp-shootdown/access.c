/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The readers' side. What an access does is compared with what the page's entry says, if the page
 * has not changed meanwhile; the sequence number tells. A write goes to a word of the CPU's own, and
 * is looked for in the frame, through the identity map.
 */
#include "shootdown.h"

#define NO_FAULT (~0UL)
#define SLOTS 1024 /* offset of the CPUs' words */

extern const u8 probe_begin[], probe_end[], probe_faulted[];

u64 probe_read(u64 gva, u64 *value);
u64 probe_write(u64 gva, u64 *value);
u64 probe_call(u64 gva, u64 *value);

static u64 written[MAX_CPUS];

/* A fetch faults with RIP at the page, all else in the probe. */
static void on_page_fault(struct trap_frame *frame)
{
	u64 gva = frame->rbx, rip = frame->rip;
	bool fetch = frame->error_code & PF_FETCH;

	if (read_cr2() != gva || (fetch ? rip != gva : rip < (u64)probe_begin || rip >= (u64)probe_end))
		unexpected_trap(frame);
	frame->rax = frame->error_code;
	frame->rip = (u64)probe_faulted;
}

void access_init(void)
{
	set_handler(VECTOR_PF, on_page_fault);
}

/* 0 if an access that needs `right` (of a page table entry; NX: that it be clear) succeeds. */
static u64 expected(u64 entry, u64 right, u64 error)
{
	if (entry == GONE)
		return error;
	if (right == PT_NX ? entry & PT_NX : !(entry & right))
		return error | PF_PRESENT;
	return NO_FAULT;
}

static bool unchanged(const struct page *page, u64 sequence)
{
	return load_acquire(&page->sequence) == sequence;
}

static void wrong(const char *what, u64 i, u64 found, u64 wanted)
{
	cpu_fail("CPU %u, page %lu: %s 0x%lx, not 0x%lx", cpu_id(), i, what, found, wanted);
}

/*
 * A page that has just become writable or executable may fault once more, if the TLB had it without
 * that right; the fault removes what the TLB had (SDM vol. 3, 4.10.4.3).
 */
static u64 probe_twice(u64 (*probe)(u64 gva, u64 *value), u64 gva, u64 *value, u64 wanted)
{
	u64 fault = probe(gva, value);

	return fault == wanted ? fault : probe(gva, value);
}

/* These return whether the page stayed as it was. */
static bool read_or_call(u64 i, u64 sequence, u64 entry, bool call)
{
	u64 value = 0, fault, wanted = call ? expected(entry, PT_NX, PF_FETCH) : expected(entry, PT_PRESENT, 0);

	if (call) {
		serialize(); /* another CPU has written the code */
		fault = probe_twice(probe_call, gva_of(i), &value, wanted);
	} else {
		fault = probe_read(gva_of(i) + PAGE_SIZE - 8, &value);
	}
	if (!unchanged(&window[i], sequence))
		return false;
	if (fault != wanted)
		wrong(call ? "the call's fault" : "the read's fault", i, fault, wanted);
	if (fault == NO_FAULT && value != frame_tag(entry & PT_ADDR_MASK))
		wrong(call ? "the call returns" : "the read finds", i, value, frame_tag(entry & PT_ADDR_MASK));
	return unchanged(&window[i], sequence);
}

static bool write(u64 i, u64 sequence, u64 entry)
{
	u64 slot = SLOTS + cpu_id() * 8, value = ++written[cpu_id()] << 8 | cpu_id(), found;
	u64 wanted = expected(entry, PT_WRITABLE, PF_WRITE);
	u64 fault = probe_twice(probe_write, gva_of(i) + slot, &value, wanted);

	if (!unchanged(&window[i], sequence))
		return false;
	if (fault != wanted)
		wrong("the write's fault", i, fault, wanted);
	if (fault != NO_FAULT)
		return true;
	found = *(volatile u64 *)((entry & PT_ADDR_MASK) + slot);
	if (found != value && unchanged(&window[i], sequence))
		wrong("the frame has", i, found, value);
	return unchanged(&window[i], sequence);
}

bool access_page(u64 i)
{
	u64 sequence = load_acquire(&window[i].sequence), entry = load_acquire(&window[i].entry);

	if (sequence % 2)
		return false;
	return read_or_call(i, sequence, entry, false) && write(i, sequence, entry) &&
	       (i % 8 != cpu_id() % 8 || read_or_call(i, sequence, entry, true));
}

void access_all(void)
{
	for (u64 i = 0; i < pages; i++)
		access_page(i);
}
