/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Accesses that may fault; probe_leave(result) ends the one that is under way, on whatever stack. */
#include "selectors.h"

#define PATTERN 0xc3c3c3c3 /* PROBE_PATTERN */

/* EBX: the address, EAX: the kind. The value that is written is the one that is there. */
.macro access
	cmpl	$1, %eax
	ja	2f
	je	1f
	movl	(%ebx), %ecx
	jmp	3f
1:	movl	$PATTERN, (%ebx)
	jmp	3f
2:	call	*%ebx
3:
.endm

.macro enter
	pushl	%ebp
	pushl	%ebx
	pushl	%esi
	pushl	%edi
	movl	20(%esp), %ebx
	movl	24(%esp), %eax
	movl	%esp, probe_esp
.endm

	.text
	.globl	probe_kernel
probe_kernel:
	enter
	access
	movl	$-1, %eax
	jmp	leave

	.globl	probe_user
probe_user:
	enter
	movl	28(%esp), %ecx
	movl	32(%esp), %edx
	movl	$USER_DATA, %esi
	movl	%esi, %ds
	movl	%esi, %es
	pushl	%esi
	pushl	%edx
	pushl	$2
	pushl	$USER_CODE
	pushl	%ecx
	iretl

	.globl	probe_leave
probe_leave:
	movl	4(%esp), %eax
	movl	probe_esp, %esp
leave:
	movl	$KERNEL_DATA, %ecx
	movl	%ecx, %ds
	movl	%ecx, %es
	popl	%edi
	popl	%esi
	popl	%ebx
	popl	%ebp
	ret

	.section .user, "ax", @progbits
	.globl	probe_user_stub
probe_user_stub:
	access
	int	$0x80

	.bss
	.balign	4
probe_esp:
	.skip	4
