/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "serial.h"

#include "cpu.h"
#include "string.h"

#define COM1 0x3f8
#define UART_IER (COM1 + 1)
#define UART_FCR (COM1 + 2)
#define UART_LCR (COM1 + 3)
#define UART_MCR (COM1 + 4)
#define UART_LSR (COM1 + 5)
#define LCR_8N1 0x03
#define LCR_DLAB 0x80
#define LSR_THRE 0x20

void serial_init(void)
{
	outb(0, UART_IER);
	outb(LCR_DLAB | LCR_8N1, UART_LCR);
	outb(1, COM1);
	outb(0, UART_IER);
	outb(LCR_8N1, UART_LCR);
	outb(0x07, UART_FCR);
	outb(0x03, UART_MCR);
}

void serial_putc(char c)
{
	while (!(inb(UART_LSR) & LSR_THRE))
		;
	outb(c, COM1);
}

struct field {
	unsigned width;
	char pad;
	bool left;
	bool wide;
};

static void put_padded(const char *text, size_t length, const struct field *field)
{
	size_t blanks = field->width > length ? field->width - length : 0;

	if (!field->left)
		while (blanks && blanks--)
			serial_putc(field->pad);
	for (size_t i = 0; i < length; i++)
		serial_putc(text[i]);
	while (blanks && blanks--)
		serial_putc(' ');
}

static void put_number(u64 value, unsigned base, bool negative, struct field *field)
{
	char digits[24];
	size_t at = sizeof(digits);

	do {
		digits[--at] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	if (negative && field->pad == '0') {
		serial_putc('-');
		field->width -= field->width > 0;
	} else if (negative) {
		digits[--at] = '-';
	}
	put_padded(digits + at, sizeof(digits) - at, field);
}

static const char *parse_field(const char *s, struct field *field)
{
	*field = (struct field){ .pad = ' ' };
	for (; *s == '0' || *s == '-'; s++) {
		if (*s == '-')
			field->left = true;
		else
			field->pad = '0';
	}
	for (; *s >= '0' && *s <= '9'; s++)
		field->width = field->width * 10 + (unsigned)(*s - '0');
	for (; *s == 'l'; s++)
		field->wide = true;
	return s;
}

static void put_conversion(char conversion, struct field *field, va_list *args)
{
	const char *text;
	s64 number;
	u64 unsigned_number;
	char c;

	switch (conversion) {
	case 'd':
	case 'i':
		number = field->wide ? va_arg(*args, s64) : va_arg(*args, int);
		put_number(number < 0 ? -(u64)number : (u64)number, 10, number < 0, field);
		break;
	case 'u':
	case 'x':
		unsigned_number = field->wide ? va_arg(*args, u64) : va_arg(*args, u32);
		put_number(unsigned_number, conversion == 'u' ? 10 : 16, false, field);
		break;
	case 'p':
		*field = (struct field){ .pad = '0', .width = 16 };
		put_number((u64)va_arg(*args, void *), 16, false, field);
		break;
	case 'c':
		c = (char)va_arg(*args, int);
		put_padded(&c, 1, field);
		break;
	case 's':
		text = va_arg(*args, const char *);
		put_padded(text, strlen(text), field);
		break;
	default:
		serial_putc(conversion);
	}
}

void vprintf(const char *format, va_list args)
{
	struct field field;
	va_list list;

	va_copy(list, args);
	for (; *format; format++) {
		if (*format != '%') {
			serial_putc(*format);
			continue;
		}
		format = parse_field(format + 1, &field);
		if (!*format)
			break;
		put_conversion(*format, &field, &list);
	}
	va_end(list);
}

void printf(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vprintf(format, args);
	va_end(args);
}
