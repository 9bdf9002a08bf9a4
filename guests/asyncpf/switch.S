/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * void switch_stack(u64 *from, u64 to): go on where the stack `to` was left; this call returns when
 * somebody switches to *from. A fresh stack holds six registers and the address to start at.
 */
	.section .text
	.code64
	.globl	switch_stack
switch_stack:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, (%rdi)
	movq	%rsi, %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret
