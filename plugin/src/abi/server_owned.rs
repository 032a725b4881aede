//! Statics that the server writes to.

#![allow(unsafe_code)]

use core::cell::UnsafeCell;

/// A static that the server reads and writes through a raw pointer.
///
/// The interior mutability keeps it out of the pages that the dynamic linker makes read-only (RELRO). The
/// server writes to plugin and variable structures and would crash there.
#[repr(transparent)]
pub struct ServerOwned<T>(UnsafeCell<T>);

// SAFETY: this crate never forms a reference to the content. It only hands out the address. The server
// synchronises its own accesses, and ours go through raw pointers while the server waits for this library.
unsafe impl<T> Sync for ServerOwned<T> {}

impl<T> ServerOwned<T> {
    /// Wraps the initial value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Returns the address to give to the server.
    pub const fn address(&self) -> *mut T {
        self.0.get()
    }
}
