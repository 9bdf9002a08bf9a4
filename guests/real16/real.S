/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * enter_real(): from 32-bit protected mode to real mode and back. The 16-bit code is copied to
 * REAL_BASE first; it appends each answer to RESULTS, which GS:DI points to.
 */
#include "selectors.h"
#include "shared.h"

#define CR0_PE 1
#define COM1 0x3f8

	.text
	.code32
	.globl	enter_real
enter_real:
	pushal
	movl	%esp, saved_esp
	movl	$real_begin, %esi
	movl	$REAL_BASE, %edi
	movl	$(real_end - real_begin), %ecx
	rep movsb
	sidt	saved_idt
	ljmp	$SPARE_CODE, $(protected16 - real_begin)

	.globl	back_in_32
back_in_32:
	movl	$KERNEL_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	movl	saved_esp, %esp
	lidt	saved_idt
	popal
	ret

	.bss
	.balign	4
saved_esp:
	.skip	4
saved_idt:
	.skip	8

/* Append a 16 or 32-bit value. */
.macro answer16 value
	movzwl	\value, %eax
	call	append
.endm
.macro answer32 value
	movl	\value, %eax
	call	append
.endm

	.section .rodata
	.code16
real_begin:

/* CS is a 16-bit segment at REAL_BASE. FS keeps a limit of 4 GiB into real mode ("unreal mode"). */
protected16:
	movw	$KERNEL_DATA, %ax
	movw	%ax, %fs
	movw	$SPARE_DATA, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	%ax, %gs
	lidtl	ivt_register - real_begin
	movl	%cr0, %eax
	andb	$~CR0_PE, %al
	movl	%eax, %cr0
	ljmpw	$REAL_SEGMENT, $(real_mode - real_begin)
real_mode:
	movw	%cs, %ax
	movw	%ax, %ds
	movw	%ax, %ss
	movw	$REAL_STACK, %sp
	movw	$RESULTS_SEGMENT, %ax
	movw	%ax, %gs
	movw	$0, next_answer - real_begin
	call	say_hello
	call	segments
	call	strings
	call	stack
	call	interrupts
	call	arithmetic
	call	unreal
	call	sieve

	movl	%cr0, %eax
	orb	$CR0_PE, %al
	movl	%eax, %cr0
	ljmpl	$KERNEL_CODE, $back_in_32

append:
	pushw	%di
	movw	next_answer - real_begin, %di
	movl	%eax, %gs:(%di)
	addw	$4, next_answer - real_begin
	popw	%di
	ret
next_answer:
	.word	0
ivt_register:
	.word	0x3ff
	.long	0

say_hello:
	movw	$(hello - real_begin), %si
	cld
1:	lodsb
	testb	%al, %al
	jz	3f
	movb	%al, %bl
	movw	$(COM1 + 5), %dx
2:	inb	%dx, %al
	testb	$0x20, %al
	jz	2b
	movw	$COM1, %dx
	movb	%bl, %al
	outb	%al, %dx
	jmp	1b
3:	ret
hello:
	.asciz	"Hello from real mode.\n"

/* One byte at three addresses; LDS and LES; an offset that wraps at 64 KiB. */
segments:
	movw	$DATA_SEGMENT, %ax
	movw	%ax, %es
	movw	$0xbeef, %es:0x1234
	movw	$(DATA_SEGMENT + 0x123), %ax
	movw	%ax, %es
	answer16 %es:0x0004
	movw	$DATA_SEGMENT, %ax
	movw	%ax, %es
	movw	$0xfff0, %bx
	movw	$0x1234, %si
	/* (0xfff0 + 0x1234 + 0x10) mod 64 KiB is 0x1234. */
	answer16 %es:0x10(%bx,%si)
	lesw	far_pointer - real_begin, %di
	answer16 %es:(%di)
	movw	%es, %ax
	answer16 %ax
	answer16 %di
	ret
far_pointer:
	.word	0x0034, DATA_SEGMENT + 0x120

/* REP with both directions, prefixes, scan and compare; SI and DI wrap. */
strings:
	pushw	%ds
	movw	$DATA_SEGMENT, %ax
	movw	%ax, %es
	cld
	xorw	%di, %di
	movw	$0x5aa5, %ax
	movw	$0x7fff, %cx
	rep stosw
	popw	%ds
	pushw	%ds
	answer16 %di
	movw	$(hello - real_begin), %si
	movw	$0xfffc, %di
	movw	$8, %cx
	rep movsb
	answer16 %di
	answer32 %es:0xfffc
	answer32 %es:0x0000
	std
	movw	$7, %si
	movw	$0x107, %di
	movw	$8, %cx
	rep movsb %es:(%si), %es:(%di)
	answer16 %si
	answer32 %es:0x104
	cld
	movw	$0x100, %di
	movb	$' ', %al
	movw	$0xffff, %cx
	repne scasb
	answer16 %di
	answer16 %cx
	movw	$0, %si
	movw	$0x100, %di
	movw	%es, %ax
	movw	%ax, %ds
	movw	$0xffff, %cx
	repe cmpsb
	popw	%ds
	answer16 %si
	ret

/* PUSHA, ENTER, LEAVE, far calls, RET with a count, a stack pointer that wraps, PUSH SP. */
stack:
	movw	%sp, %bp
	movw	$1, %ax
	movw	$2, %bx
	movw	$3, %cx
	movw	$4, %dx
	movw	$5, %si
	movw	$6, %di
	pushaw
	movw	%sp, %bx
	answer16 6(%bx)
	answer16 14(%bx)
	popaw
	answer16 %bx
	pushw	%bp
	enter	$8, $0
	movw	%bp, %ax
	subw	%sp, %ax
	leave
	popw	%bp
	answer16 %ax
	pushw	$0x7777
	lcallw	$REAL_SEGMENT, $(far_procedure - real_begin)
	answer16 %dx
	lcallw	*far_target - real_begin
	answer16 %dx
	movw	%sp, %ax
	subw	%bp, %ax
	answer16 %ax
	movw	%ss, %cx
	movw	%sp, %bp
	movw	$DATA_SEGMENT, %ax
	movw	%ax, %ss
	movw	$2, %sp
	pushl	$0x11223344
	movw	%sp, %ax
	movw	%cx, %ss
	movw	%bp, %sp
	answer16 %ax
	movw	$DATA_SEGMENT, %ax
	movw	%ax, %es
	answer16 %es:0xfffe
	ret
far_procedure:
	movw	%sp, %bx
	movw	%ss:4(%bx), %dx
	addw	%ss:2(%bx), %dx
	lretw	$2
far_target:
	.word	far_again - real_begin, REAL_SEGMENT
far_again:
	movw	$0x4321, %dx
	lretw

/* INT n, INT3, INTO, #DE, #UD and BOUND through the table at 0; flags and return addresses. */
interrupts:
	xorw	%ax, %ax
	movw	%ax, %es
	movw	$(interrupt_table - real_begin), %si
1:	lodsw
	cmpw	$0xffff, %ax
	je	2f
	movw	%ax, %bx
	shlw	$2, %bx
	lodsw
	movw	%ax, %es:(%bx)
	movw	%cs, %es:2(%bx)
	jmp	1b
2:	movw	$0, seen - real_begin
	pushw	$0x0a02		/* OF and IF */
	popfw
	int	$0x60
	pushfw
	popw	%bx
	cli
	answer16 %bx
	answer16 seen_flags - real_begin
	int3
	xorw	%ax, %ax
	into
	movb	$0x7f, %al
	addb	$1, %al
	into
	xorw	%dx, %dx
	movw	$100, %ax
	xorw	%cx, %cx
	divw	%cx
	ud2
	movw	$9, %ax
	bound	%ax, limits - real_begin
	movw	$10, %ax
	bound	%ax, limits - real_begin
	answer16 seen - real_begin
	pushfw
	popw	%ax
	andw	$0x0200, %ax
	answer16 %ax
	ret
limits:
	.word	3, 9
interrupt_table:
	.word	0x60, on_call - real_begin, 3, on_breakpoint - real_begin, 4, on_overflow - real_begin
	.word	0, on_divide - real_begin, 6, on_undefined - real_begin, 5, on_bound - real_begin, 0xffff
seen:
	.word	0
seen_flags:
	.word	0
on_call:
	pushfw
	popw	seen_flags - real_begin
	orw	$0x01, seen - real_begin
	iretw
on_breakpoint:
	orw	$0x02, seen - real_begin
	iretw
on_overflow:
	addw	$0x10, seen - real_begin
	iretw
/* Faults: return behind the instruction, which has two bytes, four for BOUND. */
on_divide:
	orw	$0x100, seen - real_begin
	jmp	skip2
on_undefined:
	orw	$0x200, seen - real_begin
	jmp	skip2
on_bound:
	addw	$0x1000, seen - real_begin
	movw	%sp, %bx
	addw	$2, %ss:(%bx)
skip2:
	movw	%sp, %bx
	addw	$2, %ss:(%bx)
	iretw

/* What 64-bit mode does not have: BCD, SALC, 16-bit LOOP and JCXZ; and shifts, divisions, XLAT. */
arithmetic:
	movb	$0x38, %al
	addb	$0x45, %al
	daa
	answer16 %ax
	movw	$0x024f, %ax
	aam
	answer16 %ax
	aad
	answer16 %ax
	movw	$0x0035, %ax
	subb	$0x37, %al
	aas
	answer16 %ax
	stc
	.byte	0xd6		/* SALC */
	movb	$0, %ah
	answer16 %ax
	movl	$0x12345, %ecx
	xorw	%ax, %ax
1:	incw	%ax
	loop	1b
	answer16 %ax
	answer32 %ecx
	movw	$0x8001, %ax
	movw	$0x1234, %dx
	shldw	$4, %ax, %dx
	answer16 %dx
	movw	$0x0001, %dx
	movw	$0x2345, %ax
	movw	$0x0123, %cx
	divw	%cx
	shll	$16, %edx
	movw	%ax, %dx
	answer32 %edx
	movw	$(hello - real_begin), %bx
	movb	$4, %al
	xlatb
	movb	$0, %ah
	answer16 %ax
	ret

/* FS has base 0 and, from protected mode, a limit of 4 GiB: 32-bit addresses beyond 1 MiB work. */
unreal:
	movl	$HIGH_WORD, %ebx
	movl	%fs:(%ebx), %eax
	call	append
	movl	$3, %esi
	movl	$0x600dcafe, %fs:4(%ebx,%esi,8)
	movl	%fs:4(%ebx,%esi,8), %eax
	call	append
	ret

/* Primes below 65536, a byte per number: a segment to its end. */
sieve:
	movw	$DATA_SEGMENT, %ax
	movw	%ax, %es
	xorw	%di, %di
	movw	$0x0101, %ax
	movw	$0x8000, %cx
	cld
	rep stosw
	movw	$2, %bx
1:	cmpb	$0, %es:(%bx)
	je	3f
	movw	%bx, %ax
	mulw	%bx
	movw	%ax, %di
2:	movb	$0, %es:(%di)
	addw	%bx, %di
	jnc	2b
3:	incw	%bx
	cmpw	$256, %bx
	jb	1b
	xorw	%ax, %ax
	xorl	%edx, %edx
	movw	$2, %bx
4:	cmpb	$0, %es:(%bx)
	je	5f
	incw	%ax
	movzwl	%bx, %ecx
	addl	%ecx, %edx
5:	incw	%bx
	jnz	4b
	answer16 %ax
	answer32 %edx
	ret
real_end:
