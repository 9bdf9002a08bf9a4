/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One stub of 32 bytes for each vector, the way into a case and the way back.
 *
 * Every stack that an event may arrive on has a top that is a multiple of 16, as the CPU itself
 * makes it: five words are pushed without an error code and six with one, so bit 3 of RSP tells
 * which it was, whatever the vector.
 */

#define NO_ERROR -1
#define KERNEL_SS 0x10
#define KERNEL_CS 0x08

	.section .text
	.code64
	.globl	event_stubs
	.balign	32
event_stubs:
	.set	vector, 0
	.rept	256
	.balign	32
	testb	$8, %spl
	jz	1f
	pushq	$NO_ERROR
1:	pushq	$vector
	jmp	event_common
	.set	vector, vector + 1
	.endr

/* Builds struct frame of traps.h. Flags are changed only after the CPU has pushed them. */
event_common:
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rbx
	pushq	%rbp
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	cld
	movq	%rsp, %rdi
	movq	%rsp, %rbp
	andq	$-16, %rsp
	call	on_event
	movq	%rbp, %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rbp
	popq	%rbx
	popq	%rdx
	popq	%rcx
	popq	%rax
	addq	$16, %rsp
	.globl	event_iret
event_iret:
	iretq

/* void enter_case(const struct context *): RIP CS RFLAGS RSP SS, then DS for DS and ES. */
	.globl	enter_case
enter_case:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, case_rsp
	movl	40(%rdi), %eax
	movl	%eax, %ds
	movl	%eax, %es
	pushq	32(%rdi)
	pushq	24(%rdi)
	pushq	16(%rdi)
	pushq	8(%rdi)
	pushq	(%rdi)
	xorl	%eax, %eax
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%esi, %esi
	xorl	%edi, %edi
	xorl	%ebp, %ebp
	iretq

/* void leave_case(void): enter_case() returns. By IRET, which also lets NMIs in again. */
	.globl	leave_case
leave_case:
	movq	case_rsp, %rsp
	movl	$KERNEL_SS, %eax
	movl	%eax, %ds
	movl	%eax, %es
	xorl	%ecx, %ecx
	movl	%ecx, %fs
	movl	%ecx, %gs
	movq	%rsp, %rcx
	pushq	%rax
	pushq	%rcx
	pushq	$2
	pushq	$KERNEL_CS
	pushq	$1f
	iretq
1:	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret

	.bss
	.balign	8
case_rsp:
	.skip	8
