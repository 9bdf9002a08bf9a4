/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the manual says about one access: SDM vol. 3, 4.3 to 4.8. Written from the text, for every
 * paging mode, and used by the 32-bit guest as well. Entries are given by level (1: page table),
 * those of 32 bits as their low half.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include "types.h"

#define P (1ull << 0)
#define W (1ull << 1)
#define U (1ull << 2)
#define PWT (1ull << 3)
#define PCD (1ull << 4)
#define A (1ull << 5)
#define D (1ull << 6)
#define PS (1ull << 7)
#define G (1ull << 8)
#define AVAILABLE (7ull << 9)
#define LARGE_PAT (1ull << 12)
#define KEY_SHIFT 59
#define NX (1ull << 63)

/* Bits of a page fault's error code; the guests' own headers have some of them. */
#define E_P 1u
#define E_W 2u
#define E_U 4u
#define E_RSVD 8u
#define E_FETCH 16u
#define E_PK 32u
#define ALLOWED 0xffffffffu

#define MAX_LEVELS 5

/* levels: of the tables; wide: their entries have 64 bits; maxphyaddr, gigabyte: by CPUID. The rest is control bits. */
struct cpu {
	int levels, maxphyaddr;
	bool wide, pse, gigabyte, wp, nxe, smep, smap, ac, pke;
	u32 pkru;
};

/* The last two are a load of FS with a descriptor from there, which is a supervisor's access even at CPL 3. */
enum kind { READ, WRITE, FETCH, MODIFY, LOAD_DESCRIPTOR, MARK_DESCRIPTOR, KINDS };

static inline bool is_implicit(enum kind kind)
{
	return kind >= LOAD_DESCRIPTOR;
}

static inline bool stores(enum kind kind)
{
	return kind == WRITE || kind == MODIFY || kind == MARK_DESCRIPTOR;
}

/* The second access of an instruction that reads and then writes. */
static inline bool reads_first(enum kind kind)
{
	return kind == MODIFY || kind == MARK_DESCRIPTOR;
}

static inline bool is_long(const struct cpu *cpu)
{
	return cpu->levels > 3;
}

static inline bool is_leaf(const struct cpu *cpu, int level, u64 entry)
{
	return level == 1 || (entry & PS && level < 4 && (cpu->wide || cpu->pse));
}

static inline u64 bits(int high, int low)
{
	return (2ull << high) - (1ull << low);
}

/* 4.3, table 4-4; 4.4, tables 4-9 to 4-11; 4.5, tables 4-14 to 4-20. */
static inline u64 reserved_bits(const struct cpu *cpu, int level, u64 entry)
{
	bool large = level > 1 && is_leaf(cpu, level, entry);
	u64 reserved;

	if (!cpu->wide)
		return large ? bits(21, cpu->maxphyaddr < 40 ? cpu->maxphyaddr - 19 : 21) : 0;
	reserved = bits(51, cpu->maxphyaddr) | (cpu->nxe ? 0 : NX);
	if (!is_long(cpu))
		reserved |= bits(62, 52);
	if (level >= 4 || (level == 3 && !cpu->gigabyte))
		reserved |= PS;
	if (large)
		reserved |= bits(level == 2 ? 20 : 29, 13);
	return reserved;
}

/* 4.6.2: 0, or what a key does not allow. `rights` of all levels. */
static inline bool key_refuses(const struct cpu *cpu, u64 rights, u64 leaf, bool write, bool user)
{
	u32 key = cpu->pkru >> 2 * (leaf >> KEY_SHIFT & 15) & 3;

	if (!cpu->pke || !is_long(cpu) || !(rights & U))
		return false;
	return key & 1 || (key & 2 && write && (user || cpu->wp));
}

/* 4.6.1. `nx`: of any level. */
static inline bool rights_refuse(const struct cpu *cpu, u64 rights, bool nx, enum kind kind, bool write, bool user)
{
	if (user && !(rights & U))
		return true;
	if (kind == FETCH)
		return nx || (!user && cpu->smep && rights & U);
	if (!user && cpu->smap && rights & U && (is_implicit(kind) || !cpu->ac))
		return true;
	return write && !(rights & W) && (user || cpu->wp);
}

/*
 * The error code of one access, or ALLOWED. *leaf is the level where the walk ends; `user`: CPL 3 and
 * not implicit.
 */
static inline u32 one_access(const struct cpu *cpu, const u64 *entries, enum kind kind, bool write, bool user, int *leaf)
{
	u32 error = (write ? E_W : 0) | (user ? E_U : 0);
	u64 rights = W | U, entry;
	bool nx = false, refused;

	if (kind == FETCH && (cpu->smep || (cpu->nxe && cpu->wide)))
		error |= E_FETCH;
	for (*leaf = cpu->levels;; --*leaf) {
		entry = entries[*leaf];
		if (!(entry & P))
			return error;
		if (entry & reserved_bits(cpu, *leaf, entry))
			return error | E_RSVD | E_P;
		rights &= entry;
		nx |= cpu->wide && entry & NX;
		if (is_leaf(cpu, *leaf, entry))
			break;
	}
	refused = rights_refuse(cpu, rights, nx, kind, write, user);
	if (kind != FETCH && key_refuses(cpu, rights, entry, write, user))
		return error | E_P | E_PK;
	return refused ? error | E_P : ALLOWED;
}

/*
 * The error code of an instruction, or ALLOWED. One that reads and writes is refused by the read
 * first, or as a write at once: the manual leaves that open. *as_write is then the other error code,
 * else ALLOWED.
 */
static inline u32 verdict(const struct cpu *cpu, const u64 *entries, enum kind kind, bool user, int *leaf, u32 *as_write)
{
	u32 error = ALLOWED;

	*as_write = ALLOWED;
	user = user && !is_implicit(kind);
	if (!stores(kind) || reads_first(kind))
		error = one_access(cpu, entries, kind, false, user, leaf);
	if (error != ALLOWED && reads_first(kind))
		*as_write = one_access(cpu, entries, kind, true, user, leaf);
	if (error == ALLOWED && stores(kind))
		error = one_access(cpu, entries, kind, true, user, leaf);
	return error;
}

/* An error code that `as_write` allows too, in the form of the other one. */
static inline u32 as_read_first(u32 error, u32 wanted, u32 as_write)
{
	if (as_write == ALLOWED || error == ALLOWED)
		return error;
	return error == as_write ? wanted : error & ~E_W;
}

/*
 * 4.8: which bits of the entry of `level` may have changed (*may), and must be set (the result) after
 * an access. A fault sets no D; it may have set A in the entries above the one that ended the walk,
 * and in that one too if the instruction had read before.
 */
static inline u64 marks(enum kind kind, u32 error, int level, int leaf, u64 *may)
{
	*may = 0;
	if (level < leaf)
		return 0;
	if (error == ALLOWED)
		return A | (level == leaf && stores(kind) ? D : 0);
	if (level > leaf || (error & E_W && reads_first(kind)))
		*may = A;
	return 0;
}

#endif
