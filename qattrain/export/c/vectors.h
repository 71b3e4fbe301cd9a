#if defined __AVX2__ && !defined QATTRAIN_PORTABLE
#define VECTORS
#include <immintrin.h>
#endif

#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline, unused))   /* the caller knows all sizes */
#define SEPARATE static __attribute__((noinline, unused))             /* has few numbers to keep in registers */
#define ALIGNED __attribute__((aligned(64)))                          /* no vector crosses a cache line */
#else
#define INLINE static inline
#define SEPARATE static
#define ALIGNED
#endif

#ifdef __cplusplus
#define RESTRICT
#else
#define RESTRICT restrict
#endif
