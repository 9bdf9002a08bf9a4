/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a case runs: code of its own is entered by IRET in one of the modes below, and every event
 * that the CPU delivers meanwhile is written down. A trap goes on where it came from; a fault, or
 * the INT at the end of the code, ends the case. Then the log is compared with what the manual
 * says (Intel SDM vol. 3, chapters 6 and 17, and vol. 2).
 */
#ifndef TRAPS_H
#define TRAPS_H

#include "guest.h"

#define DE 0
#define DB 1
#define NMI 2
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
#define PF 14
#define MF 16
#define AC 17
#define XM 19
#define DONE 0x81 /* ends a case */
#define CALL 0x82 /* an interrupt gate for CPL 3 */
#define CALL_TRAP 0x83 /* a trap gate for CPL 3 */

/* Selectors; the order of 0x08-0x30 is what SYSCALL, SYSRET, SYSENTER and SYSEXIT want. */
#define S_KCODE 0x08
#define S_KDATA 0x10
#define S_UCODE32 0x1b
#define S_UDATA 0x23
#define S_UCODE 0x2b
#define S_KCODE32 0x38
#define S_TSS 0x40
#define S_LDT 0x50
#define S_UCODE16 0x63
#define S_SPARE 0x68 /* two entries of the case's own */
#define S_ABSENT_DATA 0x78
#define S_ABSENT_CODE 0x80
#define S_RODATA 0x88
#define S_XCODE 0x90 /* cannot be read */
#define S_CONFORMING 0x98
#define S_SMALL 0xa0 /* DPL 3 data of 16 bytes */
#define S_BAD_CODE 0xa8 /* L and D both set */
#define S_BEYOND 0x200
#define GDT_ENTRIES 32

#define FLAG_CF 0x1
#define FLAG_TF 0x100
#define FLAG_IF 0x200
#define FLAG_DF 0x400
#define FLAG_IOPL3 0x3000
#define FLAG_NT 0x4000
#define FLAG_RF 0x10000
#define FLAG_AC 0x40000

#define DR6_RESET 0xffff0ff0UL
#define DR6_BD (1UL << 13)
#define DR6_BS (1UL << 14)
#define DR7_RESET 0x400UL
#define DR7_GD (1UL << 13)

#define CR0_MP (1UL << 1)
#define CR0_EM (1UL << 2)
#define CR0_TS (1UL << 3)
#define CR0_NE (1UL << 5)
#define CR4_TSD (1UL << 2)
#define CR4_DE (1UL << 3)

#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176
#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_FMASK 0xc0000084
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102

#define NONE (~0UL) /* no error code is pushed */
#define STACK_SIZE 4096
#define MAX_EVENTS 64

/* K64 and U64: 64-bit mode at CPL 0 and 3. K32, U32, U16: compatibility mode. */
enum mode { K64, U64, K32, U32, U16 };

struct frame {
	u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	u64 vector, error, rip, cs, rflags, rsp, ss;
};

/* `top`: where the stack was before the CPU pushed anything. */
struct event {
	u64 vector, error, rip, cs, rflags, rsp, ss, cr2, dr6, top;
	u64 rax, rcx, rdx, r11;
};

struct context {
	u64 rip, cs, rflags, rsp, ss, ds;
};

struct table_register {
	u16 limit;
	u64 base;
} __attribute__((packed));

struct gate {
	u16 offset_low, selector;
	u8 ist, type;
	u16 offset_mid;
	u32 offset_high, reserved;
};

struct tss {
	u32 reserved0;
	u64 rsp[3], reserved1, ist[7], reserved2;
	u16 reserved3, iomap_base;
	u8 iomap[8193];
} __attribute__((packed));

/* One row: code and what must come of it; or, if `run` is not NULL, a function. */
struct test {
	const char *name;
	void (*run)(void);
	enum mode mode;
	void (*setup)(void);
	const u8 *code, *at, *next;
	u64 vector, error;
	int where;
	bool exact; /* QEMU's TCG does otherwise */
};

struct group {
	const struct test *tests;
	u64 count;
};

/* What `where` says of the saved RIP. */
enum { AT, NEXT };

extern u64 own_gdt[GDT_ENTRIES];
extern struct gate own_idt[256];
extern struct tss own_tss;
extern u8 case_stack[STACK_SIZE], rsp0_stack[STACK_SIZE], ist_stack1[STACK_SIZE], ist_stack2[STACK_SIZE];
extern u8 case_data[2 * PAGE_SIZE];
extern struct event events[MAX_EVENTS];
extern u64 nr_events;
extern bool exact;

/* Called for each event before it is dealt with; may change the frame. Reset before each case. */
extern void (*event_hook)(struct frame *frame);

/* RFLAGS that a case starts with, and how many events it may have; reset before each case. */
extern u64 case_flags, max_events;

/* state.c: everything as it is to be at the beginning of a case. */
void reset_state(void);
/* Let CPL 3 use the first 4 MiB, where all code and data are. */
void open_low_memory(void);
void set_gate(u8 vector, u64 offset, u16 selector, u8 type, u8 ist);
void set_tss(u16 selector, u64 base, u32 limit, u8 type);
void load_tr(u16 selector);
u64 stub_of(u8 vector);

/* run.c */
void run_code(enum mode mode, const u8 *code);
void enter_case(const struct context *context);
_Noreturn void leave_case(void);
void on_event(struct frame *frame);
/* Note a failure of the running case unless `found` is `wanted`. */
bool expect(const char *what, u64 found, u64 wanted);
/* Event `n` must be this one. */
bool expect_event(u64 n, u64 vector, u64 error, const u8 *rip);
/* Only what `exact` asks for. */
bool expect_exact(const char *what, u64 found, u64 wanted);

#define CODE(name, bits, text)                                                        \
	__asm__(".pushsection .text\n" bits "\n.globl " #name "\n" #name ":\n" text     \
		"\nint $0x81\n.code64\n.popsection");                                  \
	extern const u8 name[]
#define CODE64(name, text) CODE(name, ".code64", text)
#define CODE32(name, text) CODE(name, ".code32", text)
/*
 * Rows: X(name, mode, setup, before, instruction, after, vector, error, where). TEXT makes the code
 * of a row and ROW its entry; EXACT_ROW is for what QEMU's TCG gets wrong.
 */
#define BITS_K64 ".code64\n"
#define BITS_U64 ".code64\n"
#define BITS_K32 ".code32\n"
#define BITS_U32 ".code32\n"
#define BITS_U16 ".code16\n"
#define TEXT(...) TEXT_(__VA_ARGS__)
#define TEXT_(name, mode, setup, before, insn, after, vector, error, where)               \
	__asm__(".pushsection .text\n" BITS_##mode "row_" #name ":\n" before                \
		"\nrow_" #name "_at:\n" insn "\nrow_" #name "_next:\n" after                  \
		"\nint $0x81\n.code64\n.popsection");                                       \
	extern const u8 row_##name[], row_##name##_at[], row_##name##_next[];
#define ROW_OF(name, mode, setup, vector, error, where, exact)                           \
	{ #name, NULL, mode, setup, row_##name, row_##name##_at, row_##name##_next, vector, error, where, exact },
#define ROW(...) ROW_(__VA_ARGS__)
#define ROW_(name, mode, setup, before, insn, after, vector, error, where)                \
	ROW_OF(name, mode, setup, vector, error, where, false)
#define EXACT_ROW(...) EXACT_ROW_(__VA_ARGS__)
#define EXACT_ROW_(name, mode, setup, before, insn, after, vector, error, where)          \
	ROW_OF(name, mode, setup, vector, error, where, true)
#define RUN(function) { .name = #function, .run = function },
#define RUN_EXACT(function) { .name = #function, .run = function, .exact = true },
#define LABEL(name) "\n.globl " name "\n" name ":\n"

static inline u64 rdmsr(u32 index)
{
	u32 low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
	return (u64)high << 32 | low;
}

static inline void wrmsr(u32 index, u64 value)
{
	__asm__ volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

#define REGISTER64(name)                                                        \
	static inline u64 get_##name(void)                                      \
	{                                                                       \
		u64 value;                                                      \
                                                                                \
		__asm__ volatile("mov %%" #name ", %0" : "=r"(value));          \
		return value;                                                   \
	}                                                                       \
	static inline void set_##name(u64 value)                                \
	{                                                                       \
		__asm__ volatile("mov %0, %%" #name : : "r"(value) : "memory"); \
	}
REGISTER64(cr0)
REGISTER64(cr2)
REGISTER64(cr4)
REGISTER64(dr0)
REGISTER64(dr1)
REGISTER64(dr2)
REGISTER64(dr3)
REGISTER64(dr6)
REGISTER64(dr7)

#endif
