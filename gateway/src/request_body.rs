//! A client's body on its way upstream, counted and watched.
