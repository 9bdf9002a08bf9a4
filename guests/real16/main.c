/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Real mode (SDM vol. 3, 21.1), entered from protected mode and left again, twice. real.S answers
 * with one word for each line below.
 */
#include "guest.h"
#include "shared.h"

#define PIC_MASTER_MASK 0x21
#define PIC_SLAVE_MASK 0xa1
#define HIGH_CONTENT 0xfeedf00du
#define SEGMENT_TYPE_CODE 0x9b
#define SEGMENT_TYPE_DATA 0x93

static const struct {
	const char *question;
	u32 answer;
} answers[] = {
	{ "the same byte through another segment", 0xbeef },
	{ "an offset beyond 64 KiB wraps", 0xbeef },
	{ "LES: what it points to", 0xbeef },
	{ "LES: segment", 0x3120 },
	{ "LES: offset", 0x0034 },
	{ "REP STOSW of 32767 words ends at", 0xfffe },
	{ "REP MOVSB across the end of a segment ends at", 0x0004 },
	{ "REP MOVSB: before the end", 0x6c6c6548 },
	{ "REP MOVSB: at the beginning", 0x7266206f },
	{ "REP MOVSB backwards ends at", 0xffff },
	{ "REP MOVSB backwards: copied", 0x5aa55aa5 },
	{ "REPNE SCASB finds a blank and ends at", 0x0102 },
	{ "REPNE SCASB leaves of its count", 0xfffd },
	{ "REPE CMPSB finds a difference and ends at", 0x0101 },
	{ "PUSHA stores SP", 0xffee },
	{ "PUSHA stores AX", 1 },
	{ "POPA restores BX", 2 },
	{ "ENTER takes", 8 },
	{ "a far procedure's arguments", 0x8777 },
	{ "a far call through memory", 0x4321 },
	{ "the stack is where it was", 0 },
	{ "SP wraps to", 0xfffe },
	{ "the low half is stored at 0xfffe", 0x3344 },
	{ "flags after IRET", 0x0a02 },
	{ "flags in the handler: IF is clear", 0x0802 },
	{ "INT, INT3, INTO, #DE, #UD, BOUND seen", 0x1313 },
	{ "IF after the faults", 0 },
	{ "DAA of 38 + 45", 0x0083 },
	{ "AAM of 79", 0x0709 },
	{ "AAD", 0x004f },
	{ "AAS of 5 - 7", 0xff08 },
	{ "SALC with carry", 0x00ff },
	{ "LOOP counts by CX", 0x2345 },
	{ "and keeps the rest of ECX", 0x10000 },
	{ "SHLD", 0x2348 },
	{ "DIV: remainder and quotient", 0x450100 },
	{ "XLAT", 'o' },
	{ "a word beyond 1 MiB", HIGH_CONTENT },
	{ "a word written there", 0x600dcafe },
	{ "primes below 65536", 6542 },
	{ "their sum", 202288087 },
};

extern u64 gdt[];
void enter_real(void);

/* 64 KiB at REAL_BASE and, for data, at 0: what the descriptor caches keep when CR0.PE goes. */
static u64 segment16(u32 base, u32 type)
{
	return 0xffffull | (u64)(base & 0xffffff) << 16 | (u64)type << 40;
}

/* Folds the answers into the checksum; the number of wrong ones. */
static u32 check(u64 *checksum)
{
	const volatile u32 *results = (const volatile u32 *)RESULTS;
	u32 wrong = 0;

	for (u32 n = 0; n < ARRAY_SIZE(answers); n++) {
		*checksum = checksum_add(*checksum, results[n]);
		if (results[n] == answers[n].answer)
			continue;
		printf("%s: 0x%x instead of 0x%x\n", answers[n].question, results[n], answers[n].answer);
		wrong++;
	}
	return wrong;
}

int main(int argc, char **argv)
{
	u64 checksum = 0;
	u32 wrong = 0;

	(void)argc, (void)argv;
	/* real.S sets IF for a moment; nothing is to come. */
	outb(0xff, PIC_MASTER_MASK);
	outb(0xff, PIC_SLAVE_MASK);
	gdt[SPARE_CODE / 8] = segment16(REAL_BASE, SEGMENT_TYPE_CODE);
	gdt[SPARE_DATA / 8] = segment16(REAL_BASE, SEGMENT_TYPE_DATA);
	for (int round = 0; round < 2; round++) {
		memset((void *)RESULTS, 0xdd, 4 * ARRAY_SIZE(answers));
		*(volatile u32 *)HIGH_WORD = HIGH_CONTENT;
		enter_real();
		printf("and in 32-bit mode again\n");
		wrong += check(&checksum);
	}
	if (wrong)
		fail("%u of %u answers", wrong, 2 * (u32)ARRAY_SIZE(answers));
	printf("%u answers, all right\n", 2 * (u32)ARRAY_SIZE(answers));
	finish(checksum);
}
