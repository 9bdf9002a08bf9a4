/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * u64 probe_read(u64 gva, u64 *value), probe_write(u64 gva, u64 *value), probe_call(u64 gva, u64 *value):
 * one access; the error code of its page fault, or ~0 without one. The fault handler goes on at
 * probe_faulted with the error code in RAX; RBX holds `gva`.
 */
	.section .text
	.code64

	.macro probe name
	.globl	\name
\name:
	pushq	%rbx
	pushq	%rbp
	movq	%rsp, %rbp
	movq	%rdi, %rbx
	.endm

	.globl	probe_begin, probe_end
probe_begin:
	probe	probe_read
	movq	(%rbx), %rax
	movq	%rax, (%rsi)
	jmp	done

	probe	probe_write
	movq	(%rsi), %rax
	movq	%rax, (%rbx)
	jmp	done

	probe	probe_call
	pushq	%rsi
	pushq	$0
	call	*%rbx
	movq	8(%rsp), %rsi
	movq	%rax, (%rsi)
done:
	movq	$-1, %rax
	.globl	probe_faulted
probe_faulted:
	movq	%rbp, %rsp
	popq	%rbp
	popq	%rbx
	ret
probe_end:
