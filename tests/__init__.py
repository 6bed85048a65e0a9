"""The tests of dpool; the directories mirror the package's."""
