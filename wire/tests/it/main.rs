//! The wire crate from outside: recorded bytes of the official clients, hostile input, properties, and the fuzz targets' seeds.

#[cfg(test)]
mod bills;
#[cfg(test)]
mod challenges;
#[cfg(test)]
mod cost;
#[cfg(test)]
mod credentials;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod invoices;
#[cfg(test)]
mod macaroons;
#[cfg(test)]
mod matching;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod transfers;
