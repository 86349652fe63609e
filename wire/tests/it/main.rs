//! The wire crate from outside: recorded bytes of the official clients, hostile input, properties, and the fuzz targets' seeds.

mod bills;
mod cost;
mod credentials;
mod fixtures;
mod golden;
mod matching;
mod pages;
mod seeds;
