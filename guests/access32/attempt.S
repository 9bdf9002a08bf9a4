/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The accesses; whatever happens goes on at attempt_done. */
#include "selectors.h"

#define READ		0
#define WRITE		1
#define FETCH		2
#define MODIFY		3

/* EDI: address, ESI: kind, EDX: value. EAX: what was read. */
	.macro	access
	cmpl	$WRITE, %esi
	je	1f
	ja	2f
	movl	(%edi), %eax
	jmp	9f
1:	movl	%edx, (%edi)
	jmp	9f
2:	cmpl	$MODIFY, %esi
	je	3f
	ja	4f
	call	*%edi
	jmp	9f
3:	addl	%edx, (%edi)
	jmp	9f
4:	movl	%edx, %fs
9:
	.endm

	.macro	enter
	pushl	%ebp
	pushl	%ebx
	pushl	%esi
	pushl	%edi
	movl	%esp, attempt_esp
	movl	20(%esp), %edi
	movl	24(%esp), %esi
	movl	28(%esp), %edx
	.endm

	.text
/* u32 attempt_kernel(address, kind, value, eflags) */
	.globl	attempt_kernel
attempt_kernel:
	enter
	pushl	32(%esp)
	popfl
	access
	.globl	attempt_done
attempt_done:
	movl	attempt_esp, %esp
	pushl	$2
	popfl
	movl	$KERNEL_DATA, %ecx
	movl	%ecx, %ds
	movl	%ecx, %es
	popl	%edi
	popl	%esi
	popl	%ebx
	popl	%ebp
	ret

/* u32 attempt_user(address, kind, value, eflags, eip, esp) */
	.globl	attempt_user
attempt_user:
	enter
	movl	32(%esp), %eax
	movl	36(%esp), %ebx
	movl	40(%esp), %ebp
	movl	$USER_DATA, %ecx
	movl	%ecx, %ds
	movl	%ecx, %es
	pushl	%ecx
	pushl	%ebp
	pushl	%eax
	pushl	$USER_CODE
	pushl	%ebx
	iretl

/* u32 attempt_cr(value, unused, number) */
	.globl	attempt_cr
attempt_cr:
	enter
	xorl	%eax, %eax
	testl	%edx, %edx
	jz	1f
	cmpl	$3, %edx
	je	2f
	movl	%edi, %cr4
	jmp	attempt_done
1:	movl	%edi, %cr0
	jmp	attempt_done
2:	movl	%edi, %cr3
	jmp	attempt_done

	.section .user, "ax", @progbits
	.globl	attempt_stub
attempt_stub:
	access
	int	$0x80

	.bss
	.balign	4
attempt_esp:
	.skip	4
