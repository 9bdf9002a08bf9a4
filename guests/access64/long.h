/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The CPU in long mode: its control bits, and the way to five levels. */
#ifndef LONG_H
#define LONG_H

#include "oracle.h"

#define LDT_ENTRIES 2

/* What CPUID has: maxphyaddr, and the control bits that may be set. */
void cpu_features(struct cpu *has);

/* Our own GDT, with an LDT of LDT_ENTRIES descriptors at `ldt`. */
void load_descriptor_tables(u64 ldt);

/* Load CR3. With five levels the way leads through compatibility mode, where paging can be turned off. */
void enter_paging(u64 root, int levels);

/*
 * CR0.WP, EFER.NXE, CR4.SMEP, SMAP and PKE as in `cpu`. AC is for the single access. Nothing is
 * invalidated but what must be: a change of NXE needs it.
 */
void set_control(const struct cpu *cpu, const struct cpu *has);

/* CR4.PGE off and on again: nothing is left in the TLB, not even global pages. */
void flush_all(void);

/* CR4.PKE must be set. */
void wrpkru(u32 value);

#endif
