/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * 32-bit protected mode (SDM vol. 3, 4.3 and 4.4) against an oracle that is written from the manual:
 * without paging, with two levels of 32-bit entries, with PAE. Error code, CR2, what was read and
 * stored, and the accessed and dirty bits of both levels.
 */
#include "attempt.h"
#include "boot.h"
#include "console.h"
#include "cpu.h"
#include "high.h"
#include "matrix.h"
#include "pointers.h"
#include "string.h"
#include "window.h"

static void cpuid(u32 leaf, u32 *eax, u32 *ebx, u32 *edx)
{
	u32 ecx;

	__asm__ volatile("cpuid" : "=a"(*eax), "=b"(*ebx), "=c"(ecx), "=d"(*edx) : "a"(leaf), "c"(0));
}

static void cpu_features(struct cpu *has)
{
	u32 eax, ebx, edx;

	cpuid(7, &eax, &ebx, &edx);
	has->smep = ebx >> 7 & 1;
	has->smap = ebx >> 20 & 1;
	cpuid(0x80000001, &eax, &ebx, &edx);
	has->nxe = edx >> 20 & 1;
	cpuid(0x80000008, &eax, &ebx, &edx);
	has->maxphyaddr = eax & 0xff;
}

/* NAME=NUMBER, or false. */
static bool parse(const char *word, const char *name, u32 *number)
{
	while (*name && *word == *name)
		word++, name++;
	if (*name || *word++ != '=' || !*word)
		return false;
	for (*number = 0; *word >= '0' && *word <= '9'; word++)
		*number = 10 * *number + (u32)(*word - '0');
	return !*word;
}

static void report(const char *mode, struct matrix *m)
{
	printf("%s: %u combinations, %u failures\n", mode, m->tried, m->failures);
	m->tried = 0;
}

/* CPL 3 runs where it is loaded. Paging comes after this. */
static void no_paging(struct matrix *m)
{
	u32 step = m->step;

	m->step = 1;
	m->has.levels = 0;
	attempt_at((u32)_user_start, (u32)user_stack + PAGE_SIZE, WINDOW_PAGE + LDT_AT);
	run_matrix(m);
	report("no paging", m);
	m->step = step;
}

static void turn_on_paging(bool pae, u32 root)
{
	write_cr4(pae ? read_cr4() | CR4_PAE : read_cr4());
	write_cr3(root);
	write_cr0(read_cr0() | CR0_PG);
	attempt_at(USER_AT, USER_STACK_TOP, WINDOW + LDT_AT);
}

int main(int argc, char **argv)
{
	static struct matrix m;
	u32 pae = DEFAULT_pae, exact = DEFAULT_exact, high = DEFAULT_high, root;

	m.step = DEFAULT_step;
	m.churn = DEFAULT_churn;
	for (int i = 1; i < argc; i++)
		if (!parse(argv[i], "pae", &pae) && !parse(argv[i], "step", &m.step) &&
		    !parse(argv[i], "churn", &m.churn) && !parse(argv[i], "high", &high) && !parse(argv[i], "exact", &exact)) {
			printf(GUEST_NAME ": unknown parameter: %s\n", argv[i]);
			exit_guest(EXIT_USAGE);
		}
	if (pae > 1 || exact > 1 || !m.step) {
		printf(GUEST_NAME ": pae and exact are 0 or 1, step is not 0\n");
		exit_guest(EXIT_USAGE);
	}
	m.exact = exact;
	cpu_features(&m.has);
	root = build_tables(pae);
	attempt_init();
	no_paging(&m);
	turn_on_paging(pae, root);
	m.has.levels = 2;
	m.has.wide = pae;
	run_matrix(&m);
	report(pae ? "PAE" : "two levels", &m);
	if (pae && exact) {
		run_pointers(&m);
		report("pointers", &m);
	}
	if (high) {
		run_high(&m);
		report("above 4 GiB", &m);
	}
	if (m.failures)
		fail("%u failures, checksum=0x%L", m.failures, m.checksum);
	finish(m.checksum);
}
