/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * As traps.h of the 64-bit guest: code is entered in one of the modes, every event is written down,
 * traps go on, a fault or INT 0x81 ends the case. Code for 16 bits is copied below 1 MiB.
 */
#ifndef TRAPS32_H
#define TRAPS32_H

#include "guest.h"

#define DE 0
#define DB 1
#define BP 3
#define OF 4
#define BR 5
#define UD 6
#define NM 7
#define DF 8
#define TS 10
#define NP 11
#define SS 12
#define GP 13
#define DONE 0x81
#define CALL 0x82

#define S_KCODE 0x08
#define S_KDATA 0x10
#define S_UCODE 0x1b
#define S_UDATA 0x23
#define S_TSS 0x28
#define S_TASK 0x30
#define S_SPARE 0x38
#define S_UCODE16 0x43
#define S_ABSENT_DATA 0x48
#define S_ABSENT_CODE 0x50
#define S_RODATA 0x58
#define S_XCODE 0x60
#define S_CONFORMING 0x68
#define S_LDT 0x70
#define S_RING1_DATA 0x79
#define S_BEYOND 0x200
#define GDT_ENTRIES 16

#define FLAG_CF 0x1
#define FLAG_TF 0x100
#define FLAG_IF 0x200
#define FLAG_IOPL3 0x3000
#define FLAG_NT 0x4000
#define FLAG_RF 0x10000
#define FLAG_VM 0x20000

#define NONE (~0u)
#define STACK_SIZE 2048
#define MAX_EVENTS 32
#define LOW_CODE 0x10000 /* where 16-bit code is copied */

enum mode { K32, U32, U16, V86 };

struct frame {
	u32 edi, esi, ebp, unused, ebx, edx, ecx, eax, es, ds;
	u32 vector, error, eip, cs, eflags, esp, ss, v86_es, v86_ds, v86_fs, v86_gs;
};

struct event {
	u32 vector, error, eip, cs, eflags, esp, ss, at, dr6, eax, ecx, edx, ds, es;
	u32 v86[4];
};

struct context {
	u32 eip, cs, eflags, esp, ss, unused, ds;
};

struct gate {
	u16 low, selector, type, high;
};

struct tss {
	u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi, es, cs, ss, ds, fs,
		gs, ldt;
	u16 trap, io_map;
	u8 map[33];
} __attribute__((packed));

struct test {
	const char *name;
	void (*run)(void);
	enum mode mode;
	void (*setup)(void);
	const u8 *code, *at, *next, *end;
	u32 vector, error;
	int where;
	bool exact;
};

struct group {
	const struct test *tests;
	u32 count;
};

enum { AT, NEXT };

extern u64 own_gdt[GDT_ENTRIES];
extern struct gate own_idt[256];
extern struct tss own_tss, task_tss;
extern u8 case_stack[STACK_SIZE], esp0_stack[STACK_SIZE], task_stack[STACK_SIZE];
extern u8 case_data[256];
extern struct event events[MAX_EVENTS];
extern u32 nr_events, case_flags, max_events, case_esp, task_flags, task_esp, task_error, task_entries;
extern void (*event_hook)(struct frame *frame);
extern bool exact;

void reset_state(void);
void set_gate(u8 vector, u32 offset, u16 selector, u16 type);
void set_system(u16 selector, u32 base, u32 limit, u8 type);
u32 stub_of(u8 vector);
void load_tr(u16 selector);

void run_code(enum mode mode, const u8 *code, const u8 *end);
void enter_case(const struct context *context);
_Noreturn void leave_case(void);
void on_event(struct frame *frame);
bool expect(const char *what, u32 found, u32 wanted);
/* `rip` as the CPU sees it: an offset for code of 16 bits. */
bool expect_event(u32 n, u32 vector, u32 error, u32 eip);

#define CODE(name, bits, text)                                                            \
	__asm__(".pushsection .text\n" bits "\n.globl " #name "\n" #name ":\n" text         \
		"\nint $0x81\n.globl " #name "_end\n" #name "_end:\n.code32\n.popsection");  \
	extern const u8 name[], name##_end[]
#define LABEL(name) "\n.globl " name "\n" name ":\n"

#define BITS_K32 ".code32\n"
#define BITS_U32 ".code32\n"
#define BITS_U16 ".code16\n"
#define BITS_V86 ".code16\n"
#define TEXT(...) TEXT_(__VA_ARGS__)
#define TEXT_(name, mode, setup, before, insn, after, vector, error, where)                \
	__asm__(".pushsection .text\n" BITS_##mode "row_" #name ":\n" before                   \
		"\nrow_" #name "_at:\n" insn "\nrow_" #name "_next:\n" after                     \
		"\nint $0x81\nrow_" #name "_end:\n.code32\n.popsection");                         \
	extern const u8 row_##name[], row_##name##_at[], row_##name##_next[], row_##name##_end[];
#define ROW_OF(name, mode, setup, vector, error, where, exact)                              \
	{ #name, NULL, mode, setup, row_##name, row_##name##_at, row_##name##_next, row_##name##_end, vector, error, where, exact },
#define ROW(...) ROW_(__VA_ARGS__)
#define ROW_(name, mode, setup, before, insn, after, vector, error, where)                  \
	ROW_OF(name, mode, setup, vector, error, where, false)
#define EXACT_ROW(...) EXACT_ROW_(__VA_ARGS__)
#define EXACT_ROW_(name, mode, setup, before, insn, after, vector, error, where)            \
	ROW_OF(name, mode, setup, vector, error, where, true)
#define RUN(function) { .name = #function, .run = function },
#define RUN_EXACT(function) { .name = #function, .run = function, .exact = true },

static inline u32 get_dr6(void)
{
	u32 value;

	__asm__ volatile("movl %%dr6, %0" : "=r"(value));
	return value;
}

#endif
