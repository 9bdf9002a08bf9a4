/* SPDX-License-Identifier: GPL-2.0-or-later */
/* TLB shootdown: an IPI to all other CPUs, each of which forgets the pages and acknowledges. */
#include "shootdown.h"

#define VECTOR_SHOOTDOWN 0x41

static struct {
	u64 first, n;
	enum flush how;
	u64 acks;
} request;

static void flush_here(void)
{
	u64 cr4;

	switch (request.how) {
	case BY_INVLPG:
		for (u64 i = request.first; i < request.first + request.n; i++)
			invlpg(gva_of(i));
		break;
	case BY_CR3:
		write_cr3(read_cr3());
		break;
	default:
		cr4 = read_cr4();
		write_cr4(cr4 & ~CR4_PGE);
		write_cr4(cr4);
	}
}

static void on_shootdown(struct trap_frame *frame)
{
	(void)frame;
	flush_here();
	apic_eoi();
	atomic_xadd(&request.acks, 1);
}

void shootdown_init(void)
{
	set_handler(VECTOR_SHOOTDOWN, on_shootdown);
}

void shootdown(u64 first, u64 n, enum flush how)
{
	request.first = first;
	request.n = n;
	request.how = how;
	store_release(&request.acks, 0UL);
	if (nr_cpus > 1)
		apic_send(0, ICR_OTHERS | ICR_ASSERT | VECTOR_SHOOTDOWN);
	flush_here();
	spin_until(load_acquire(&request.acks) == nr_cpus - 1, "the acknowledgements of a shootdown");
}
