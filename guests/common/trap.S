/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Exception entry for vectors 0..31 and int 0x80, and the way to CPL 3 and back. The frame is
 * struct trap_frame of idt.h.
 */

	.section .text
	.code64

	.macro stub vector, has_error
trap_stub_\vector:
	.if !\has_error
	pushq	$0
	.endif
	pushq	$\vector
	jmp	trap_common
	.endm

	.irp vector, 0, 1, 2, 3, 4, 5, 6, 7, 9, 15, 16, 18, 19, 20, 22, 23, 24, 25, 26, 27, 28, 31
	stub \vector, 0
	.endr
	.irp vector, 8, 10, 11, 12, 13, 14, 17, 21, 29, 30
	stub \vector, 1
	.endr

	.globl	trap_stub_syscall
trap_stub_syscall:
	pushq	$0
	pushq	$0x80

	/* The same for stubs of other files. */
	.globl	trap_entry
trap_entry:
trap_common:
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
	call	trap_dispatch
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
	iretq

/*
 * u64 user_switch(rip, rsp, arg, *saved_rsp): leave for CPL 3 with RDI = arg. The kernel's stack
 * pointer is kept in *saved_rsp, from where user_return(value, saved_rsp) makes this call return
 * `value`.
 */
	.globl	user_switch
user_switch:
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	subq	$8, %rsp
	movq	%rsp, (%rcx)
	movq	%rdx, %rax
	pushq	$0x1b
	pushq	%rsi
	pushq	$0x002
	pushq	$0x23
	pushq	%rdi
	movq	%rax, %rdi
	xorl	%eax, %eax
	xorl	%ebx, %ebx
	xorl	%ecx, %ecx
	xorl	%edx, %edx
	xorl	%esi, %esi
	xorl	%ebp, %ebp
	xorl	%r8d, %r8d
	xorl	%r9d, %r9d
	xorl	%r10d, %r10d
	xorl	%r11d, %r11d
	xorl	%r12d, %r12d
	xorl	%r13d, %r13d
	xorl	%r14d, %r14d
	xorl	%r15d, %r15d
	iretq

	.globl	user_return
user_return:
	movq	%rdi, %rax
	movq	%rsi, %rsp
	movl	$0x10, %ecx
	movl	%ecx, %ss
	movl	%ecx, %ds
	movl	%ecx, %es
	addq	$8, %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret

	.section .rodata
	.balign	8
	.globl	trap_stubs
	.altmacro
	.macro entry vector
	.quad	trap_stub_\vector
	.endm
trap_stubs:
	.set	i, 0
	.rept	32
	entry	%i
	.set	i, i + 1
	.endr
