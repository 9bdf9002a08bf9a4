/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "long.h"

#include "guest.h"

#define CR0_WP (1u << 16)
#define CR4_PGE (1u << 7)
#define CR4_SMEP (1u << 20)
#define CR4_SMAP (1u << 21)
#define CR4_PKE (1u << 22)
#define MSR_EFER 0xc0000080u
#define EFER_NXE (1u << 11)
#define GDT_ENTRIES 10
#define COMPAT_CODE 7 /* in enter_la57 too */
#define LDT 8

extern u64 gdt[];

void enter_la57(u64 root);

static void cpuid(u32 leaf, u32 *eax, u32 *ebx, u32 *ecx, u32 *edx)
{
	__asm__ volatile("cpuid" : "=a"(*eax), "=b"(*ebx), "=c"(*ecx), "=d"(*edx) : "a"(leaf), "c"(0));
}

void cpu_features(struct cpu *has)
{
	u32 eax, ebx, ecx, edx;

	cpuid(7, &eax, &ebx, &ecx, &edx);
	has->smep = ebx >> 7 & 1;
	has->smap = ebx >> 20 & 1;
	has->pke = ecx >> 3 & 1;
	has->levels = ecx >> 16 & 1 ? 5 : 4;
	cpuid(0x80000001, &eax, &ebx, &ecx, &edx);
	has->nxe = edx >> 20 & 1;
	has->gigabyte = edx >> 26 & 1;
	cpuid(0x80000008, &eax, &ebx, &ecx, &edx);
	has->maxphyaddr = eax & 0xff;
	has->wide = has->wp = has->ac = true;
}

void load_descriptor_tables(u64 ldt)
{
	static u64 own[GDT_ENTRIES];
	const struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) gdtr = { sizeof(own) - 1, (u64)own };
	const u64 limit = LDT_ENTRIES * 8 - 1, present_ldt = 0x82;

	memcpy(own, gdt, COMPAT_CODE * sizeof(own[0]));
	own[COMPAT_CODE] = 0x00cf9b000000ffffull;
	own[LDT] = limit | (ldt & 0xffffff) << 16 | present_ldt << 40 | (ldt >> 24 & 0xff) << 56;
	own[LDT + 1] = ldt >> 32;
	__asm__ volatile("lgdt %0; lldt %w1" : : "m"(gdtr), "r"(LDT * 8) : "memory");
}

void enter_paging(u64 root, int levels)
{
	if (levels == 5)
		enter_la57(root);
	else
		write_cr3(root);
}

static u64 with(u64 value, u64 bit, bool on)
{
	return on ? value | bit : value & ~bit;
}

void set_control(const struct cpu *cpu, const struct cpu *has)
{
	u64 cr0, cr4;
	u32 low, high;

	__asm__ volatile("mov %%cr0, %0; mov %%cr4, %1" : "=r"(cr0), "=r"(cr4));
	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(MSR_EFER));
	cr0 = with(cr0, CR0_WP, cpu->wp);
	cr4 = with(cr4, CR4_SMEP, cpu->smep);
	cr4 = with(cr4, CR4_SMAP, cpu->smap);
	cr4 = with(cr4, CR4_PKE, cpu->pke);
	if (has->nxe)
		__asm__ volatile("wrmsr" : : "c"(MSR_EFER), "a"((u32)with(low, EFER_NXE, cpu->nxe)), "d"(high));
	__asm__ volatile("mov %0, %%cr0; mov %1, %%cr4" : : "r"(cr0), "r"(cr4) : "memory");
	if (!(low & EFER_NXE) != !cpu->nxe)
		flush_all();
}

void flush_all(void)
{
	u64 cr4;

	__asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
	__asm__ volatile("mov %0, %%cr4" : : "r"(cr4 ^ CR4_PGE) : "memory");
	__asm__ volatile("mov %0, %%cr4" : : "r"(cr4) : "memory");
}

void wrpkru(u32 value)
{
	__asm__ volatile(".byte 0x0f, 0x01, 0xef" : : "a"(value), "c"(0), "d"(0) : "memory");
}
