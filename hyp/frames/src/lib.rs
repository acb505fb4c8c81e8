//! Physical memory: frame records, folios, the frame allocator, the direct map.
#![cfg_attr(not(test), no_std)]
