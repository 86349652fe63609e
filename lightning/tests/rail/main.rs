//! The rail with a node that does what its script says: for faults that a real one cannot be brought to have.

mod attacks;
mod bills;
mod news;
mod node;
mod shop;
mod tokens;
