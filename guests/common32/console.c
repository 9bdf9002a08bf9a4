/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "console.h"

#include "cpu.h"

#define COM1 0x3f8
#define UART_FCR (COM1 + 2)
#define UART_LCR (COM1 + 3)
#define UART_LSR (COM1 + 5)
#define LCR_8N1 0x03
#define LCR_DLAB 0x80
#define LSR_THRE 0x20

void console_init(void)
{
	outb(LCR_DLAB | LCR_8N1, UART_LCR);
	outb(1, COM1);
	outb(0, COM1 + 1);
	outb(LCR_8N1, UART_LCR);
	outb(0, COM1 + 1);
	outb(0x07, UART_FCR);
}

void console_putc(char c)
{
	while (!(inb(UART_LSR) & LSR_THRE))
		;
	outb((u8)c, COM1);
}

static void put_number(u32 value, u32 base, unsigned width)
{
	char digits[10];
	unsigned n = 0;

	do {
		digits[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	for (; width > n; width--)
		console_putc('0');
	while (n)
		console_putc(digits[--n]);
}

static void put_signed(int value)
{
	if (value < 0)
		console_putc('-');
	put_number(value < 0 ? 0u - (u32)value : (u32)value, 10, 0);
}

static void put_text(const char *text)
{
	while (*text)
		console_putc(*text++);
}

void vprintf(const char *format, va_list args)
{
	for (; *format; format++) {
		unsigned width = 0;
		u64 wide;

		if (*format != '%') {
			console_putc(*format);
			continue;
		}
		while (*++format >= '0' && *format <= '9')
			width = width * 10 + (unsigned)(*format - '0');
		switch (*format) {
		case 'c':
			console_putc((char)va_arg(args, int));
			break;
		case 's':
			put_text(va_arg(args, const char *));
			break;
		case 'd':
			put_signed(va_arg(args, int));
			break;
		case 'u':
			put_number(va_arg(args, u32), 10, width);
			break;
		case 'x':
			put_number(va_arg(args, u32), 16, width);
			break;
		case 'L':
			wide = va_arg(args, u64);
			put_number((u32)(wide >> 32), 16, 8);
			put_number((u32)wide, 16, 8);
			break;
		default:
			console_putc('%');
		}
	}
}

void printf(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprintf(format, args);
	va_end(args);
}
