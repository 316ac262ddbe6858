//! All integration tests of the program, one module for each subject. They are one test program,
//! because each further one would be linked with the whole program again.

mod support;

mod answers;
mod calls;
mod campaigns;
mod chat_vendors;
mod conversation;
mod delivery;
mod disk;
mod egress_api;
mod faults;
mod imports;
mod kills;
mod ledger;
mod line;
mod mirror;
mod model_answers;
mod openai_providers;
mod page;
mod recordings;
mod records;
mod scan;
mod tools;
mod worker;
