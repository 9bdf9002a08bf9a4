/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A stub of 32 bytes for each vector. As stacks are aligned to 16 by the CPU, bit 3 of RSP tells
 * whether it has pushed an error code.
 */
	.section .text
	.code64
	.globl	vector_stubs
	.balign	32
vector_stubs:
	.set	vector, 0
	.rept	256
	.balign	32
	testb	$8, %spl
	jz	1f
	pushq	$0
1:	pushq	$vector
	jmp	vector_common
	.set	vector, vector + 1
	.endr

vector_common:
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	pushq	%rbp
	movq	80(%rsp), %rdi
	leaq	96(%rsp), %rsi
	movq	%rsp, %rbp
	andq	$-16, %rsp
	cld
	call	on_vector
	movq	%rbp, %rsp
	popq	%rbp
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rdx
	popq	%rcx
	popq	%rax
	addq	$16, %rsp
	iretq

/*
 * Windows: each enables interrupts in one way, and its labels are the places where a pending one
 * may strike. All begin with IF clear and an interrupt pending.
 */
	.macro window name
	.globl	\name
\name:
	.endm

window window_sti
	sti
	nop
	.globl window_sti_at
window_sti_at:
	nop
	cli
	ret

window window_sti_cli
	sti
	cli
	nop
	nop
	ret

window window_sti_sti
	sti
	sti
	.globl window_sti_sti_at
window_sti_sti_at:
	nop
	cli
	ret

window window_popf
	pushq	$0x202
	popfq
	.globl window_popf_at
window_popf_at:
	nop
	cli
	ret

window window_iret
	movq	%rsp, %rax
	pushq	$0x10
	pushq	%rax
	pushq	$0x202
	pushq	$0x08
	pushq	$window_iret_at
	iretq
	.globl window_iret_at
window_iret_at:
	nop
	cli
	ret

window window_hlt
	sti
	hlt
	.globl window_hlt_at
window_hlt_at:
	nop
	cli
	ret

/* The instruction itself raises the line: AL to port DX. */
window window_out
	sti
	nop
	outb	%al, %dx
	.globl window_out_at
window_out_at:
	nop
	cli
	ret

window window_cr8
	sti
	nop
	xorl	%eax, %eax
	movq	%rax, %cr8
	.globl window_cr8_at
window_cr8_at:
	nop
	cli
	ret
