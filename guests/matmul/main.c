/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * C = A * B with A of n x k and B of k x n, in tiles, two doubles at a time. Entries are small
 * integers, so every sum is exact and the results are compared without a tolerance. Freivalds'
 * test: C * r = A * (B * r) for vectors r of +-1.
 */
#include "guest.h"

#define TILE_ROWS 32
#define TILE_INNER 4
#define LARGEST_ENTRY 15
#define TRIALS 2

typedef double pair __attribute__((vector_size(16)));

static u64 n = DEFAULT_n, k = DEFAULT_k;

static void fill(double *matrix, u64 entries, u64 seed)
{
	for (u64 i = 0; i < entries; i++)
		matrix[i] = (double)(s64)(mix(i + seed) % (2 * LARGEST_ENTRY + 1)) - LARGEST_ENTRY;
}

/* row[] += a0..a3 times four rows of B */
static void add_rows(double *row, const double *a, const double *b)
{
	pair a0 = { a[0], a[0] }, a1 = { a[1], a[1] }, a2 = { a[2], a[2] }, a3 = { a[3], a[3] };

	for (u64 j = 0; j < n; j += 2) {
		const double *column = b + j;
		pair sum = *(pair *)(row + j);

		sum += a0 * *(const pair *)column;
		sum += a1 * *(const pair *)(column + n);
		sum += a2 * *(const pair *)(column + 2 * n);
		sum += a3 * *(const pair *)(column + 3 * n);
		*(pair *)(row + j) = sum;
	}
}

static void multiply(double *c, const double *a, const double *b)
{
	for (u64 tile = 0; tile < n; tile += TILE_ROWS) {
		memset(c + tile * n, 0, TILE_ROWS * n * sizeof(double));
		for (u64 inner = 0; inner < k; inner += TILE_INNER)
			for (u64 i = tile; i < tile + TILE_ROWS; i++)
				add_rows(c + i * n, a + i * k + inner, b + inner * n);
	}
}

/* to[i] = the scalar product of row i of `matrix` with `vector` */
static void apply(double *to, const double *matrix, const double *vector, u64 rows, u64 columns)
{
	for (u64 i = 0; i < rows; i++) {
		pair sum = { 0, 0 };

		for (u64 j = 0; j < columns; j += 2)
			sum += *(const pair *)(matrix + i * columns + j) * *(const pair *)(vector + j);
		to[i] = sum[0] + sum[1];
	}
}

static void freivalds(const double *c, const double *a, const double *b, u64 trial)
{
	double *r = ram_alloc(n * sizeof(double), 16), *left = ram_alloc(n * sizeof(double), 16);
	double *inner = ram_alloc(k * sizeof(double), 16), *right = ram_alloc(n * sizeof(double), 16);

	for (u64 i = 0; i < n; i++)
		r[i] = mix(i + (trial << 32)) & 1 ? 1.0 : -1.0;
	apply(left, c, r, n, n);
	apply(inner, b, r, k, n);
	apply(right, a, inner, n, k);
	for (u64 i = 0; i < n; i++)
		if (left[i] != right[i])
			fail("row %lu: %ld, not %ld", i, (s64)left[i], (s64)right[i]);
}

int main(int argc, char **argv)
{
	const struct param params[] = {
		{ "n", &n, TILE_ROWS, 1UL << 20 },
		{ "k", &k, TILE_INNER, 1UL << 20 },
	};
	double *a, *b, *c;
	u64 checksum = 0;

	parse_params(argc, argv, params, ARRAY_SIZE(params));
	if (n % TILE_ROWS || k % TILE_INNER)
		usage("n must be a multiple of %d and k of %d", TILE_ROWS, TILE_INNER);
	a = ram_alloc(n * k * sizeof(double), PAGE_SIZE);
	b = ram_alloc(k * n * sizeof(double), PAGE_SIZE);
	c = ram_alloc(n * n * sizeof(double), PAGE_SIZE);
	fill(a, n * k, 1);
	fill(b, k * n, 2);
	multiply(c, a, b);
	for (u64 trial = 0; trial < TRIALS; trial++)
		freivalds(c, a, b, trial);
	for (u64 i = 0; i < n * n; i++)
		checksum = checksum_add(checksum, ((const u64 *)c)[i]);
	printf("multiplied %lux%lu by %lux%lu\n", n, k, k, n);
	finish(checksum, true);
}
